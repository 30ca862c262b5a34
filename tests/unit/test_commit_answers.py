"""Reading what a broker answers about commits: an error is never taken for 'no commit'."""

from types import SimpleNamespace

import pytest
from aiokafka.errors import GroupLoadInProgressError, UnknownTopicOrPartitionError

from topics.kafka.questions import committed_of
from topics.ports import Committed, Partition

FIRST, SECOND = Partition("requests", 0), Partition("requests", 1)


def answer(*entries: tuple[int, int, str, int], error_code: int = 0) -> SimpleNamespace:
    return SimpleNamespace(topics=[("requests", list(entries))], error_code=error_code)


def test_partitions_without_a_commit_are_left_out() -> None:
    told = answer((0, 7, "a1:3,4", 0), (1, -1, "", 0))
    assert committed_of(told, [FIRST, SECOND]) == {FIRST: Committed(7, "a1:3,4")}


def test_a_coordinator_that_is_loading_is_not_a_group_without_commits() -> None:
    with pytest.raises(GroupLoadInProgressError):
        committed_of(SimpleNamespace(topics=[], error_code=14), [FIRST])


def test_an_error_of_one_partition_fails_the_whole_answer() -> None:
    with pytest.raises(UnknownTopicOrPartitionError):
        committed_of(answer((0, 7, "", 0), (1, -1, "", 3)), [FIRST, SECOND])


def test_a_partition_the_answer_does_not_mention_is_an_error() -> None:
    with pytest.raises(UnknownTopicOrPartitionError):
        committed_of(answer((0, 7, "", 0)), [FIRST, SECOND])
