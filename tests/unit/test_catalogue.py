"""The table of topics, and what is said of a cluster that differs from it."""

from dataclasses import replace

import pytest

from core.idempotency import claim_life_seconds
from core.limits import Limits
from inferlog.settings import TopicCounts
from inferlog.topics import topic_settings
from schemas.requests import TIERS
from topics.catalogue import CLAIMS, FENCES, REPLIES, TopicSettings, catalogue, differences
from topics.ports import TopicState

SETTINGS = TopicSettings()
WANTED = catalogue("default", SETTINGS)
SPECS = {spec.name: spec for spec in WANTED}


def as_wanted() -> dict[str, TopicState]:
    return {
        it.name: TopicState(it.name, it.partitions, it.replication, it.configs) for it in WANTED
    }


def with_config(name: str, config: str, value: str) -> dict[str, TopicState]:
    actual = as_wanted()
    actual[name] = replace(actual[name], configs={**actual[name].configs, config: value})
    return actual


def retention_ms(name: str) -> int:
    return int(SPECS[name].configs["retention.ms"])


def test_every_topic_of_the_protocol_has_a_row() -> None:
    requests = {f"requests.default.{tier}" for tier in TIERS}
    others = {"replies", "fences", "control", "claims", "usage", "dead-letters"}
    assert set(SPECS) == requests | others | {"tenants", "workers"}


def test_fences_and_control_have_one_partition() -> None:
    assert (SPECS[FENCES].partitions, SPECS["control"].partitions) == (1, 1)


def test_append_times_are_the_brokers_everywhere() -> None:
    types = {spec.configs["message.timestamp.type"] for spec in WANTED}
    assert types == {"LogAppendTime"}


def test_the_broker_unpacks_what_is_compressed() -> None:
    """Our client reads no lz4, snappy or zstd: one such record would hold its partition up for ever."""
    assert {spec.configs["compression.type"] for spec in WANTED} == {"uncompressed"}


def test_only_what_is_keyed_by_an_id_is_compacted() -> None:
    compacted = {it.name for it in WANTED if it.configs["cleanup.policy"] == "compact"}
    assert compacted == {"tenants", "workers"}


def test_segments_are_short_enough_for_retention_to_mean_something() -> None:
    for spec in WANTED:
        if spec.configs["cleanup.policy"] == "delete":
            assert int(spec.configs["segment.ms"]) == retention_ms(spec.name) // 6


def test_retentions_cover_deadlines_and_lives() -> None:
    day_ms = 24 * 3_600_000
    for tier in TIERS:
        name = f"requests.default.{tier}"
        assert retention_ms(name) >= SETTINGS.longest_deadline_ms + day_ms
    assert retention_ms("control") == retention_ms("requests.default.batch")
    assert retention_ms(FENCES) == 3 * retention_ms(REPLIES)
    segment_ms = int(SPECS[CLAIMS].configs["segment.ms"])
    assert retention_ms(CLAIMS) >= 2 * SETTINGS.claim_life_ms + segment_ms


def test_a_record_of_two_megabytes_is_allowed() -> None:
    for name in ("requests.default.premium", REPLIES, "dead-letters"):
        assert int(SPECS[name].configs["max.message.bytes"]) > 2 * 1024 * 1024


def test_a_cluster_as_wanted_has_no_differences() -> None:
    assert differences(WANTED, as_wanted(), SETTINGS) == []


def test_more_partitions_and_longer_retention_are_fine() -> None:
    actual = with_config(REPLIES, "retention.ms", str(9 * retention_ms(REPLIES)))
    actual[REPLIES] = replace(actual[REPLIES], partitions=SPECS[REPLIES].partitions + 4)
    assert differences(WANTED, actual, SETTINGS) == []
    assert differences(WANTED, with_config(REPLIES, "retention.ms", "-1"), SETTINGS) == []


def test_a_missing_topic_is_said_with_its_remedy() -> None:
    actual = as_wanted()
    del actual[FENCES]
    (sentence,) = differences(WANTED, actual, SETTINGS)
    assert sentence == "fences: is missing; `inferlog topics create` makes it"


def test_fewer_partitions_are_said() -> None:
    actual = as_wanted()
    actual[REPLIES] = replace(actual[REPLIES], partitions=1)
    (sentence,) = differences(WANTED, actual, SETTINGS)
    assert sentence == "replies: has 1 partitions, wants 4; `inferlog topics create` adds them"


@pytest.mark.parametrize("partitions", [3, 5, 8])
def test_the_partitions_of_claims_never_change(partitions: int) -> None:
    actual = as_wanted()
    actual[CLAIMS] = replace(actual[CLAIMS], partitions=partitions)
    (sentence,) = differences(WANTED, actual, SETTINGS)
    assert sentence.startswith(f"claims: has {partitions} partitions; the count is for ever")


@pytest.mark.parametrize(
    ("topic", "config", "value", "sentence"),
    [
        (CLAIMS, "cleanup.policy", "compact", "claims: cleanup.policy is compact, must be delete"),
        (
            REPLIES,
            "message.timestamp.type",
            "CreateTime",
            "replies: message.timestamp.type is CreateTime, must be LogAppendTime",
        ),
        (
            REPLIES,
            "compression.type",
            "producer",
            "replies: compression.type is producer, must be uncompressed",
        ),
        (REPLIES, "retention.ms", "60000", "replies: keeps 60000 ms, must keep 3600000 ms or more"),
    ],
)
def test_a_wrong_configuration_is_said(topic: str, config: str, value: str, sentence: str) -> None:
    assert differences(WANTED, with_config(topic, config, value), SETTINGS) == [sentence]


def test_less_replication_is_said() -> None:
    wanted = catalogue("default", replace(SETTINGS, replication=3, min_insync=2))
    found = differences(wanted, as_wanted(), SETTINGS)
    assert found == [
        sentence
        for it in wanted
        for sentence in (
            f"{it.name}: replication 1, wants 3",
            f"{it.name}: acknowledges with 1 copies in sync, must have 2",
        )
    ]
    assert {it.configs["min.insync.replicas"] for it in wanted} == {"2"}


def test_a_deadline_longer_than_requests_are_kept_is_said() -> None:
    settings = replace(SETTINGS, longest_deadline_ms=7 * 24 * 3_600_000)
    assert differences(catalogue("default", settings), as_wanted(), settings) == [
        "requests: retention must cover the longest deadline and one day more"
    ]


def test_claims_are_kept_for_two_lives_of_the_longest_request_and_a_segment() -> None:
    limits = Limits(total_seconds=7200.0, reply_retention_seconds=14_400.0)
    kept = {it.name: it.configs for it in catalogue("p", topic_settings(TopicCounts(), limits))}
    longest_ms = 1000 * claim_life_seconds(limits)
    assert longest_ms > 1000 * limits.claim_life_seconds
    spare_ms = int(kept[CLAIMS]["retention.ms"]) - 2 * longest_ms
    assert spare_ms >= int(kept[CLAIMS]["segment.ms"])
