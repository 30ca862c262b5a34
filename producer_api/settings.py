"""The settings of an API replica, read once at its start."""

from dataclasses import dataclass, field
from pathlib import Path

from core.limits import DEFAULT_LIMITS, Limits
from topics.settings import ClusterSettings


def _cluster() -> ClusterSettings:
    return ClusterSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """One replica. Keys come from `api_key` (tenant `default`), `api_keys_file`, or both."""

    cluster: ClusterSettings = field(default_factory=_cluster)
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "address to listen on; 0.0.0.0: every one", "metavar": "address"},
    )
    port: int = field(
        default=8000,
        metadata={"help": "port to listen on, shared by all replicas", "min": 1, "max": 65535},
    )
    extra_port: int | None = field(
        default=None,
        metadata={
            "help": "a port of this replica alone, listened on as well",
            "min": 1,
            "max": 65535,
        },
    )
    replica_index: int = field(
        default=0,
        metadata={
            "help": "which replica this is, from 0: it decides its home partitions",
            "min": 0,
        },
    )
    replica_count: int = field(
        default=1, metadata={"help": "how many replicas share the reply partitions", "min": 1}
    )
    api_key: str | None = field(
        default=None, metadata={"help": "a key, of the tenant 'default'", "secret": True}
    )
    api_keys_file: Path | None = field(default=None, metadata={"help": "file of tenant:key lines"})
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata={"help": "origins whose browsers may call", "unit": "several by commas"},
    )
    drain_seconds: float = field(
        default=10.0,
        metadata={
            "help": "how long open answers may go on after the first signal",
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
        if self.replica_index >= self.replica_count:
            raise ValueError(
                f"replica index {self.replica_index} of {self.replica_count}: it counts from 0"
            )
