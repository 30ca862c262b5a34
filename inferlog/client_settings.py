"""The settings of the commands that ask something of what runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core.limits import DEFAULT_LIMITS, Limits
from inferlog.settings import JSON, LIMITS, TopicCounts, default_data_dir
from topics.settings import ClusterSettings

API_KEY = {"help": "the key to use; unset: that of the running inferlog up", "secret": True}
_PORT = {"min": 1, "max": 65535}
DATA_DIR = {"help": "folder that inferlog up would use"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Which API to speak to."""

    url: str | None = field(
        default=None, metadata={"help": "the API's address; unset: the running inferlog up"}
    )
    data_dir: Path = field(
        default_factory=default_data_dir,
        metadata={"help": "data folder of the running inferlog up, where its address and key lie"},
    )
    api_key: str | None = field(default=None, metadata=API_KEY)
    model: str | None = field(
        default=None, metadata={"help": "model to ask for; unset: the first that is served"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SendCommand:
    """`inferlog send`."""

    prompt: str = field(
        metadata={"help": "what to say; - reads it from standard input", "positional": True}
    )
    client: ClientSettings
    system: str | None = field(default=None, metadata={"help": "a system message before it"})
    max_tokens: int | None = field(
        default=None, metadata={"help": "the longest answer", "unit": "tokens", "min": 1}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "0: always the likeliest token", "min": 0, "max": 2}
    )
    seed: int | None = field(default=None, metadata={"help": "makes sampling repeatable"})
    service_tier: Literal["auto", "default", "flex", "priority"] = field(
        default="auto", metadata={"help": "how soon: priority before default before flex"}
    )
    idempotency_key: str | None = field(
        default=None, metadata={"help": "sending twice under one key runs once"}
    )
    json: bool = field(default=False, metadata=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayCommand:
    """`inferlog replay`."""

    trace: Path = field(
        metadata={
            "help": "CSV with TIMESTAMP, ContextTokens, GeneratedTokens (examples/azure_code_500.csv)",
            "positional": True,
        }
    )
    client: ClientSettings
    rows: int | None = field(
        default=None, metadata={"help": "only the first rows of the trace; unset: all", "min": 1}
    )
    stretch: str = field(
        default="auto",
        metadata={
            "help": "factor on the trace's time: 2 is half as fast; auto: as the measured prefill "
            "rate of the server allows, never faster than the trace",
            "metavar": "auto|number",
        },
    )
    prompt_tokens_max: int | None = field(
        default=None, metadata={"help": "clip prompts", "unit": "tokens", "min": 1}
    )
    output_tokens_max: int | None = field(
        default=None, metadata={"help": "clip answers", "unit": "tokens", "min": 1}
    )
    service_tier: Literal["auto", "default", "flex", "priority"] = field(
        default="auto", metadata={"help": "the tier of every request"}
    )
    open_requests_max: int = field(
        default=512,
        metadata={
            "help": "beyond so many open requests arrivals wait, and the table says so",
            "min": 1,
        },
    )
    request_seconds_max: float = field(
        default=700.0, metadata={"help": "give a request up after", "unit": "seconds", "min": 1}
    )
    json: bool = field(default=False, metadata=JSON)

    def __post_init__(self) -> None:
        if self.stretch != "auto":
            try:
                factor = float(self.stretch)
            except ValueError:
                raise ValueError(f"stretch: auto or a number, not {self.stretch!r}") from None
            if not 0 < factor < 1e6:
                raise ValueError("stretch: a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReadingSettings:
    """Which cluster to read: that of a running `inferlog up`, unless addresses are given."""

    data_dir: Path = field(
        default_factory=default_data_dir,
        metadata={"help": "data folder of the running inferlog up, where its brokers are told"},
    )
    cluster: ClusterSettings = field(default_factory=ClusterSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusCommand:
    """`inferlog status`."""

    reading: LogReadingSettings
    pool: str = field(default="default", metadata={"help": "the pool to look at"})
    watch: bool = field(
        default=True,
        metadata={"help": "keep the table up to date until Ctrl-C (on a terminal)"},
    )
    interval_seconds: float = field(
        default=1.0, metadata={"help": "time between two looks", "unit": "seconds", "min": 0.2}
    )
    json: bool = field(default=False, metadata=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCommand:
    """`inferlog log`."""

    request_id: str = field(
        metadata={"help": "an id, bare or with chatcmpl- or cmpl- before it", "positional": True}
    )
    reading: LogReadingSettings
    pool: str = field(default="default", metadata={"help": "the pool that served it"})
    json: bool = field(default=False, metadata=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicsCommand:
    """`inferlog topics create|check`."""

    reading: LogReadingSettings
    pool: str = field(default="default", metadata={"help": "the pool whose topics are meant"})
    topics: TopicCounts = field(default=TopicCounts(), metadata={"prefix": "TOPICS_"})
    json: bool = field(default=False, metadata=JSON)
    limits: Limits = field(default=DEFAULT_LIMITS, metadata=LIMITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorCommand:
    """`inferlog doctor`."""

    data_dir: Path = field(default_factory=default_data_dir, metadata=DATA_DIR)
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "address that would be listened on", "metavar": "address"},
    )
    port: int = field(default=8000, metadata={"help": "port of the API", **_PORT})
    json: bool = field(default=False, metadata=JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareCommand:
    """`inferlog bench compare`."""

    old: Path = field(
        metadata={"help": "a result, as benchmarks/results holds them", "positional": True}
    )
    new: Path = field(metadata={"help": "a later result of the same benchmark", "positional": True})
    all: bool = field(default=False, metadata={"help": "also what is the same within its spread"})
    json: bool = field(default=False, metadata=JSON)
