"""What a local Kafka node is told: a pure table of properties, and the command line of its Java."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class NodePorts:
    """The two loopback ports of a node; both survive restarts, as clients and voters know them."""

    broker: int
    controller: int


def bootstrap(nodes: Sequence[NodePorts]) -> str:
    """The address list that clients are given, `host:port,host:port`."""
    return ",".join(f"{HOST}:{node.broker}" for node in nodes)


def server_properties(
    node: int, nodes: Sequence[NodePorts], data_dir: Path, advertised_port: int | None = None
) -> dict[str, str]:
    """All properties of node `node` (from 0) of a cluster of `nodes`; its log lies in `data_dir`.

    `advertised_port`: what clients are told to call, where something stands in front of the broker.

    One broker: replication 1. Three: replication 3, of which two must have a record before it is
    acknowledged, so that one broker may die without losing any.
    """
    if not 0 <= node < len(nodes):
        raise ValueError(f"node {node} of {len(nodes)}")
    replication = min(3, len(nodes))
    in_sync = max(1, replication - 1)
    ports = nodes[node]
    voters = ",".join(f"{i + 1}@{HOST}:{each.controller}" for i, each in enumerate(nodes))
    return {
        "node.id": str(node + 1),
        "process.roles": "broker,controller",
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": (f"PLAINTEXT://{HOST}:{ports.broker},CONTROLLER://{HOST}:{ports.controller}"),
        "advertised.listeners": f"PLAINTEXT://{HOST}:{advertised_port or ports.broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data_dir),
        # A topic by a typing error would be made with the wrong settings and never be noticed.
        "auto.create.topics.enable": "false",
        "num.partitions": "1",
        "default.replication.factor": str(replication),
        "min.insync.replicas": str(in_sync),
        # A record of 2 MiB with its batch's frame; topics say the same for clusters of others.
        "message.max.bytes": str(3 * 1024 * 1024),
        # A leader that lacks acknowledged records must never be chosen.
        "unclean.leader.election.enable": "false",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": str(replication),
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": str(replication),
        "transaction.state.log.min.isr": str(in_sync),
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": str(replication),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        # The first member need not wait for others that may come.
        "group.initial.rebalance.delay.ms": "0",
        # The default of 6 s would be a floor under the time a takeover takes.
        "group.min.session.timeout.ms": "1000",
        # A dead broker's partitions get a new leader after this long, and where it was the active
        # controller as well, after another one was elected: together well under five seconds. The
        # defaults of the election (2 s without the leader, then rounds of 1 s) would make it more.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "400",
        "controller.quorum.fetch.timeout.ms": "1000",
        "controller.quorum.election.timeout.ms": "500",
        "controller.quorum.election.backoff.max.ms": "300",
        "controlled.shutdown.max.retries": "2",
        # A record that says nothing, twice a second, would be a fifth of what an idle broker costs.
        "metadata.max.idle.interval.ms": "5000",
        "num.network.threads": "2",
        "num.io.threads": "4",
        # Open files and preallocated indexes of many small partitions add up: 10 MB is the default.
        "log.index.size.max.bytes": str(1024 * 1024),
        "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
    }


def render(properties: dict[str, str]) -> str:
    """The text of a Java properties file. Raises ValueError for what would need escaping."""
    for key, value in properties.items():
        if any(char in "\r\n" for char in key + value):
            raise ValueError(f"a line break in {key}")
    # Backslashes (in a path) are the one thing that Java's format would swallow.
    lines = (f"{key}={value.replace(chr(92), chr(92) * 2)}\n" for key, value in properties.items())
    return "".join(lines)


def java_command(java: Path, libs: Path, main_class: str, *args: str, heap_mb: int) -> list[str]:
    """Runs a class of Kafka: small heap, one collector thread, no second compiler (it starts
    in three seconds instead of eight).
    """
    return [
        str(java),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        # Half-dead on lack of memory is worse than dead: whoever supervises starts it again.
        "-XX:+ExitOnOutOfMemoryError",
        # At `info` the file would grow by megabytes a day; errors say why a start failed.
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        *("-cp", f"{libs}/*", main_class, *args),
    ]
