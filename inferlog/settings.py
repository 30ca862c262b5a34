"""The settings of the commands that start something. Those of the processes are where they are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from consumers.inference.settings import EngineKind, WorkerSettings
from core.limits import DEFAULT_LIMITS, Limits
from producer_api.settings import ApiSettings
from runtime.logs import LogSettings
from topics.settings import ClusterSettings

FIRST_METRICS_PORT = 9464
DATA_DIR = {"help": "folder for the log, keys and log files"}
JSON = {"help": "print JSON for a script to read"}
LIMITS = {"prefix": "LIMIT_"}
_PORT = {"min": 1, "max": 65535}


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`inferlog` in the user's folder for data."""
    base = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "inferlog"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCommand:
    """`inferlog api`."""

    api: ApiSettings
    log: LogSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCommand:
    """`inferlog worker`."""

    worker: WorkerSettings
    log: LogSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerCommand:
    """`inferlog broker`."""

    data_dir: Path = field(default_factory=default_data_dir, metadata=DATA_DIR)
    brokers: int = field(
        default=1,
        metadata={"help": "brokers to start: 1, or 3 with replication", "min": 1, "max": 3},
    )
    broker_port: int | None = field(
        default=None,
        metadata={"help": "port of the first broker, the others follow; unset: free ones", **_PORT},
    )
    broker_heap_mb: int = field(
        default=512,
        metadata={"help": "memory for each broker's Java heap", "unit": "MB", "min": 128},
    )
    java: Path | None = field(
        default=None,
        metadata={
            "help": "a Java (17 or newer) of your own; unset: the one that was installed along"
        },
    )

    def __post_init__(self) -> None:
        if self.brokers == 2:
            raise ValueError("brokers: 1, or 3 with replication")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicCounts:
    """How the topics are cut. Counts of a live cluster only grow; that of claims never changes."""

    request_partitions: int = field(
        default=4, metadata={"help": "partitions of each request topic", "min": 1}
    )
    reply_partitions: int = field(
        default=4, metadata={"help": "partitions of replies", "min": 1, "max": 4096}
    )
    claim_partitions: int = field(
        default=4, metadata={"help": "partitions of claims, for ever", "min": 1}
    )
    usage_partitions: int = field(default=4, metadata={"help": "partitions of usage", "min": 1})
    replication: int = field(
        default=1, metadata={"help": "copies of each partition; 3 for no loss", "min": 1}
    )
    min_insync: int = field(
        default=1, metadata={"help": "copies that must have a record before its ack", "min": 1}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpCommand:
    """`inferlog up`."""

    engine: EngineKind = field(
        default="vllm",
        metadata={"help": "vllm: a real model; scripted: a deterministic stand-in, ready at once"},
    )
    engine_option: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "an argument of the engine itself, such as max_num_seqs=16; may be repeated",
            "unit": "several in the variable by semicolons",
            "metavar": "name=value",
            "separator": ";",
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "name or folder of the model; unset: the small one of make setup"},
    )
    workers: int = field(default=1, metadata={"help": "workers to run", "min": 1, "max": 64})
    api_replicas: int = field(
        default=1, metadata={"help": "API replicas to run", "min": 1, "max": 64}
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "address to listen on; 0.0.0.0: every one", "metavar": "address"},
    )
    port: int = field(
        default=8000,
        metadata={
            "help": "port of the API; replica i listens on PORT+1+i as well",
            "min": 1,
            "max": 65000,
        },
    )
    data_dir: Path = field(default_factory=default_data_dir, metadata=DATA_DIR)
    broker: str = field(
        default="local",
        metadata={
            "help": "local: Kafka as a child process; else an existing cluster's host:port,...",
            "metavar": "local|addresses",
        },
    )
    brokers: int = field(
        default=1, metadata={"help": "local brokers: 1, or 3 with replication", "min": 1, "max": 3}
    )
    broker_heap_mb: int = field(
        default=512,
        metadata={"help": "memory for each local broker's Java heap", "unit": "MB", "min": 128},
    )
    java: Path | None = field(
        default=None,
        metadata={"help": "a Java (17 or newer) of your own; unset: the one installed along"},
    )
    pool: str = field(default="default", metadata={"help": "the pool that the workers serve"})
    metrics_host: str = field(
        default="127.0.0.1",
        metadata={"help": "address to serve metrics on", "metavar": "address"},
    )
    metrics_port: int = field(
        default=FIRST_METRICS_PORT,
        metadata={
            "help": "metrics of the first process; the others follow, skipping what is taken",
            **_PORT,
        },
    )
    api_key: str | None = field(
        default=None,
        metadata={
            "help": "a key, of the tenant 'default'; unset: keys are read from, or generated into, "
            "api-keys in the data folder",
            "secret": True,
        },
    )
    api_keys_file: Path | None = field(
        default=None, metadata={"help": "file of tenant:key lines, instead"}
    )
    session_timeout_seconds: float = field(
        default=10.0,
        metadata={
            "help": "a worker unheard of for so long is replaced",
            "unit": "seconds",
            "min": 1,
        },
    )
    drain_seconds: float = field(
        default=20.0,
        metadata={
            "help": "how long running requests may go on after Ctrl-C; a second one cuts them off",
            "unit": "seconds",
            "min": 0,
        },
    )
    ready_seconds: float = field(
        default=600.0,
        metadata={"help": "how long the start may take", "unit": "seconds", "min": 10},
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata={"help": "origins whose browsers may call", "unit": "several by commas"},
    )
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    topics: TopicCounts = field(default=TopicCounts(), metadata={"prefix": "TOPICS_"})
    limits: Limits = field(default=DEFAULT_LIMITS, metadata=LIMITS)
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        if self.brokers == 2:
            raise ValueError("brokers: 1, or 3 with replication")
        # raises for a malformed option, before anything is started
        WorkerSettings(engine=self.engine, engine_option=self.engine_option)
        if self.broker != "local":
            replace(self.cluster, bootstrap=self.broker)  # raises for a malformed address list

    def counts(self) -> TopicCounts:
        """The topics' counts; three local brokers keep three copies unless told otherwise."""
        if self.broker == "local" and self.brokers == 3 and self.topics.replication == 1:
            return replace(self.topics, replication=3, min_insync=2)
        return self.topics


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCommand:
    """`inferlog demo`."""

    engine: EngineKind = field(
        default="vllm", metadata={"help": "vllm: a real model; scripted: a stand-in, in a minute"}
    )
    demo_data_dir: Path | None = field(
        default=None, metadata={"help": "folder to keep the log in; unset: a temporary one"}
    )
    demo_rows: int = field(
        default=60, metadata={"help": "rows of the trace to replay", "min": 1, "max": 500}
    )
    demo_workers: int | None = field(
        default=None,
        metadata={
            "help": "workers to run; the second begins while the first already answers. Unset: 2, "
            "or 1 where memory is short",
            "min": 1,
            "max": 2,
        },
    )
    keep_serving: bool | None = field(
        default=None, metadata={"help": "serve on until Ctrl-C; unset: on a terminal"}
    )
    log: LogSettings = field(default_factory=LogSettings)
