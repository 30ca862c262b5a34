"""The settings of a worker process, read once at its start."""

from dataclasses import dataclass, field
from typing import Literal

from core.limits import DEFAULT_LIMITS, Limits
from schemas.requests import TIERS, Tier
from topics.settings import ClusterSettings

EngineKind = Literal["vllm", "scripted"]


def _cluster() -> ClusterSettings:
    return ClusterSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """One worker: the tiers of one pool, and one engine."""

    cluster: ClusterSettings = field(default_factory=_cluster)
    pool: str = field(
        default="default",
        metadata={"help": "the pool whose request topics (requests.POOL.TIER) are served"},
    )
    tiers: tuple[Tier, ...] = field(
        default=TIERS, metadata={"help": "the tiers to serve", "unit": "several by commas"}
    )
    engine: EngineKind = field(
        default="vllm",
        metadata={"help": "vllm: a real model; scripted: a deterministic stand-in for tests"},
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "name or folder of the model; unset: the small one that make setup prepared "
            "(vllm), or 'scripted'",
        },
    )
    engine_option: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "an argument of the engine itself, such as max_num_seqs=16; may be repeated, "
            "unknown ones are refused",
            "metavar": "name=value",
            "separator": ";",
            "unit": "several in the variable by semicolons",
        },
    )
    worker_id: str | None = field(
        default=None,
        metadata={"help": "a name for this worker, unique in its pool; unset: host name and pid"},
    )
    session_timeout_seconds: float = field(
        default=10.0,
        metadata={
            "help": "a worker unheard of for so long is replaced",
            "unit": "seconds",
            "min": 1,
            "max": 300,
        },
    )
    drain_seconds: float = field(
        default=20.0,
        metadata={
            "help": "how long running requests may go on after the first signal",
            "unit": "seconds",
            "min": 0,
            "max": 3600,
        },
    )
    metrics_host: str = field(
        default="127.0.0.1", metadata={"help": "address to serve metrics on", "metavar": "address"}
    )
    metrics_port: int = field(
        default=9464,
        metadata={"help": "port to serve metrics on; 0: none", "min": 0, "max": 65535},
    )
    limits: Limits = field(default=DEFAULT_LIMITS, metadata={"prefix": "LIMIT_"})

    def __post_init__(self) -> None:
        if not self.tiers or len(set(self.tiers)) != len(self.tiers):
            raise ValueError("tiers: at least one, and each once")
        for option in self.engine_option:
            name, mark, _ = option.partition("=")
            if not mark or not name.strip().isidentifier():
                raise ValueError(f"engine option {option!r}: name=value is expected")
