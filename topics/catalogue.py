"""Every topic a row: name, partitions, and what it keeps; and how a cluster differs from that."""

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.requests import TIERS, Tier
from topics.ports import TopicSpec, TopicState

REPLIES = "replies"
FENCES = "fences"
CONTROL = "control"
CLAIMS = "claims"
USAGE = "usage"
DEAD_LETTERS = "dead-letters"
TENANTS = "tenants"
WORKERS = "workers"

COMPRESSION = "uncompressed"
"""The broker unpacks what producers compress. Our client reads gzip alone, and one batch that it cannot
read would hold its partition up for ever; and nobody knows how large a packed batch will be."""

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings:
    """Counts, replication and retentions. Partition counts of a live cluster only grow."""

    request_partitions: int = 4
    reply_partitions: int = 4
    claim_partitions: int = 4
    usage_partitions: int = 4
    replication: int = 1
    min_insync: int = 1
    request_retention_ms: int = 2 * _DAY_MS
    reply_retention_ms: int = _HOUR_MS
    claim_life_ms: int = _HOUR_MS
    longest_deadline_ms: int = _DAY_MS


def request_topic(pool: str, tier: Tier) -> str:
    """The topic that requests of a tier go to."""
    return f"requests.{pool}.{tier}"


def catalogue(pool: str, settings: TopicSettings) -> list[TopicSpec]:
    """The topics of a cluster that serves one pool."""
    it = settings

    def delete(name: str, partitions: int, retention_ms: int) -> TopicSpec:
        configs = {
            "cleanup.policy": "delete",
            "retention.ms": str(retention_ms),
            # without it a quiet topic keeps its one segment, and "1 h" means days
            "segment.ms": str(retention_ms // 6),
            "message.timestamp.type": "LogAppendTime",
            "compression.type": COMPRESSION,
            "max.message.bytes": str(3 * 1024 * 1024),
            "min.insync.replicas": str(it.min_insync),
        }
        return TopicSpec(name, partitions, it.replication, configs)

    def compact(name: str) -> TopicSpec:
        configs = {
            "cleanup.policy": "compact",
            "message.timestamp.type": "LogAppendTime",
            "compression.type": COMPRESSION,
            "min.insync.replicas": str(it.min_insync),
            "segment.ms": str(10 * 60 * 1000),
            "max.compaction.lag.ms": str(_HOUR_MS),
        }
        return TopicSpec(name, 1, it.replication, configs)

    claim_retention_ms = 2 * it.claim_life_ms + it.claim_life_ms // 2
    return [
        *(
            delete(request_topic(pool, t), it.request_partitions, it.request_retention_ms)
            for t in TIERS
        ),
        delete(REPLIES, it.reply_partitions, it.reply_retention_ms),
        delete(FENCES, 1, 3 * it.reply_retention_ms),
        delete(CONTROL, 1, it.request_retention_ms),
        delete(CLAIMS, it.claim_partitions, claim_retention_ms),
        delete(USAGE, it.usage_partitions, 7 * _DAY_MS),
        delete(DEAD_LETTERS, 1, 14 * _DAY_MS),
        compact(TENANTS),
        compact(WORKERS),
    ]


def differences(
    wanted: list[TopicSpec], actual: Mapping[str, TopicState], settings: TopicSettings
) -> list[str]:
    """What is not as it should be, a sentence each; empty if all is well."""
    found: list[str] = []
    for spec in wanted:
        state = actual.get(spec.name)
        if state is None:
            found.append(f"{spec.name}: is missing; `inferlog topics create` makes it")
            continue
        if state.partitions < spec.partitions and spec.name != CLAIMS:
            found.append(
                f"{spec.name}: has {state.partitions} partitions, wants {spec.partitions}; "
                "`inferlog topics create` adds them"
            )
        if spec.name == CLAIMS and state.partitions != spec.partitions:
            found.append(
                f"{CLAIMS}: has {state.partitions} partitions; the count is for ever, because keys "
                f"would move: set it to {state.partitions}"
            )
        if state.replication < spec.replication:
            found.append(f"{spec.name}: replication {state.replication}, wants {spec.replication}")
        found += _wrong_configs(spec, state)
    if settings.request_retention_ms < settings.longest_deadline_ms + _DAY_MS:
        found.append("requests: retention must cover the longest deadline and one day more")
    return found


def _wrong_configs(spec: TopicSpec, state: TopicState) -> list[str]:
    found: list[str] = []
    for name in ("cleanup.policy", "message.timestamp.type", "compression.type"):
        have = state.configs.get(name)
        if have != spec.configs[name]:
            found.append(f"{spec.name}: {name} is {have}, must be {spec.configs[name]}")
    copies, need = (int(it.configs.get("min.insync.replicas", "1")) for it in (state, spec))
    if copies < need:
        found.append(f"{spec.name}: acknowledges with {copies} copies in sync, must have {need}")
    need_ms = int(spec.configs.get("retention.ms", "0"))
    have_ms = int(state.configs.get("retention.ms", "-1"))
    if need_ms and 0 <= have_ms < need_ms:
        found.append(f"{spec.name}: keeps {have_ms} ms, must keep {need_ms} ms or more")
    return found
