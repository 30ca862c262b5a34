"""What a local node is told."""

from pathlib import Path

import pytest

from schemas.codec import RECORD_BYTES_MAX
from topics.broker_config import NodePorts, bootstrap, java_command, render, server_properties

ONE = (NodePorts(19092, 19093),)
THREE = tuple(NodePorts(20000 + 10 * i, 20001 + 10 * i) for i in range(3))


def test_everything_listens_on_loopback_only() -> None:
    properties = server_properties(0, ONE, Path("/data"))
    for key in ("listeners", "advertised.listeners"):
        for listener in properties[key].split(","):
            assert "://127.0.0.1:" in listener


def test_one_node_replicates_nothing_and_waits_for_nobody() -> None:
    properties = server_properties(0, ONE, Path("/data"))
    replicated = {k: v for k, v in properties.items() if "replication.factor" in k}
    assert len(replicated) == 4
    assert set(replicated.values()) == {"1"}
    assert properties["min.insync.replicas"] == "1"


def test_of_three_nodes_one_may_die_without_loss() -> None:
    for node in range(3):
        properties = server_properties(node, THREE, Path("/data"))
        assert properties["default.replication.factor"] == "3"
        assert properties["offsets.topic.replication.factor"] == "3"
        assert properties["min.insync.replicas"] == "2"
        assert properties["unclean.leader.election.enable"] == "false"


def test_nodes_agree_on_the_voters_and_differ_in_their_ids() -> None:
    all_properties = [server_properties(node, THREE, Path("/data")) for node in range(3)]
    assert {each["controller.quorum.voters"] for each in all_properties} == {
        "1@127.0.0.1:20001,2@127.0.0.1:20011,3@127.0.0.1:20021"
    }
    assert [each["node.id"] for each in all_properties] == ["1", "2", "3"]


def test_topics_are_never_made_by_a_typing_error() -> None:
    assert server_properties(0, ONE, Path("/data"))["auto.create.topics.enable"] == "false"


def test_the_largest_record_fits_with_its_batch_frame() -> None:
    limit = int(server_properties(0, ONE, Path("/data"))["message.max.bytes"])
    assert limit >= RECORD_BYTES_MAX + 64 * 1024


def test_a_short_session_timeout_is_allowed_so_that_takeovers_are_quick() -> None:
    assert server_properties(0, ONE, Path("/data"))["group.min.session.timeout.ms"] == "1000"


@pytest.mark.parametrize("node", [-1, 1, 3])
def test_a_node_outside_the_cluster_is_refused(node: int) -> None:
    with pytest.raises(ValueError, match=f"node {node} of 1"):
        server_properties(node, ONE, Path("/data"))


def test_the_address_list_names_every_broker() -> None:
    assert bootstrap(THREE) == "127.0.0.1:20000,127.0.0.1:20010,127.0.0.1:20020"


def test_rendering_keeps_backslashes_and_refuses_line_breaks() -> None:
    assert render({"log.dirs": r"C:\data", "a": "b"}) == "log.dirs=C:\\\\data\na=b\n"
    with pytest.raises(ValueError, match="line break"):
        render({"log.dirs": "/data\nlisteners=PLAINTEXT://0.0.0.0:9092"})


def test_the_heap_is_bounded_and_arguments_come_last() -> None:
    command = java_command(Path("java"), Path("libs"), "kafka.Kafka", "s.properties", heap_mb=256)
    assert command[0] == "java"
    assert "-Xmx256m" in command
    assert command[-4:] == ["-cp", "libs/*", "kafka.Kafka", "s.properties"]
