"""How a process finds its cluster: settings shared by everything that speaks to the log."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from runtime.metrics import Metrics
    from topics.kafka import KafkaLog, Security

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Addresses and credentials of a Kafka cluster; what the client knows is passed through."""

    bootstrap: str = field(
        default="127.0.0.1:9092",
        metadata={
            "help": "Kafka's bootstrap servers",
            "unit": "host:port, several by commas",
            "metavar": "addresses",
        },
    )
    security_protocol: Protocol = field(
        default="PLAINTEXT",
        metadata={"help": "how the connection is secured", "env": "KAFKA_SECURITY_PROTOCOL"},
    )
    ssl_cafile: str | None = field(
        default=None,
        metadata={
            "help": "certificates (PEM) to trust; the system's if unset",
            "env": "KAFKA_SSL_CAFILE",
        },
    )
    ssl_certfile: str | None = field(
        default=None, metadata={"help": "our own certificate (PEM)", "env": "KAFKA_SSL_CERTFILE"}
    )
    ssl_keyfile: str | None = field(
        default=None, metadata={"help": "its private key (PEM)", "env": "KAFKA_SSL_KEYFILE"}
    )
    ssl_password: str | None = field(
        default=None,
        metadata={
            "help": "password of the private key",
            "env": "KAFKA_SSL_PASSWORD",
            "secret": True,
        },
    )
    sasl_mechanism: Mechanism = field(
        default="PLAIN", metadata={"help": "how to log in", "env": "KAFKA_SASL_MECHANISM"}
    )
    sasl_username: str | None = field(
        default=None, metadata={"help": "user name", "env": "KAFKA_SASL_USERNAME"}
    )
    sasl_password: str | None = field(
        default=None,
        metadata={"help": "password", "env": "KAFKA_SASL_PASSWORD", "secret": True},
    )

    def __post_init__(self) -> None:
        for address in self.bootstrap.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(
                    f"bootstrap servers are host:port, several by commas, not {self.bootstrap!r}"
                )
        if self.security_protocol.startswith("SASL") and not (
            self.sasl_username and self.sasl_password
        ):
            raise ValueError(f"{self.security_protocol} needs a user name and a password")

    def security(self) -> "Security":
        """The same as the client takes it. Imports the client, which takes a while."""
        from topics.kafka import Security  # noqa: PLC0415  (keeps `inferlog --help` quick)

        return Security(
            protocol=self.security_protocol,
            ssl_cafile=self.ssl_cafile,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            ssl_password=self.ssl_password,
            sasl_mechanism=self.sasl_mechanism,
            sasl_username=self.sasl_username,
            sasl_password=self.sasl_password,
        )

    def open(
        self, client_id: str, metrics: "Metrics | None" = None, *, answer_seconds: float = 10.0
    ) -> "KafkaLog":
        """A connection to the cluster; nothing is sent before its first call.

        Clients that it has to give up are counted in `metrics`. A question that has no answer after
        `answer_seconds` fails.
        """
        from topics.kafka import KafkaLog  # noqa: PLC0415  (the same)

        def on_rebuild(client: str, reason: str) -> None:
            if metrics is not None:
                metrics.client_rebuilds.labels(client, reason).inc()

        return KafkaLog(
            self.bootstrap,
            client_id=client_id,
            security=self.security(),
            request_timeout_seconds=answer_seconds,
            on_rebuild=on_rebuild,
        )
