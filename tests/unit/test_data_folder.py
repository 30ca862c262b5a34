"""A data folder that is not as it should be: of another version, damaged, or with a taken port."""

import json
from pathlib import Path

import pytest

from inferlog.data_dir import DataDir
from inferlog.local_ports import any_free, listen_alone
from inferlog.problems import CommandFailed
from topics.broker import BrokerFailed, LocalCluster
from topics.broker_process import explain


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"replica_urls": [], "later": 1}'])
def test_the_state_of_another_version_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(text)
    with pytest.raises(CommandFailed, match=r"up\.json (cannot be read|is damaged)"):
        DataDir(tmp_path).read_state()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cluster_id": "a"}'])
async def test_a_damaged_cluster_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(BrokerFailed, match="is damaged, or of another version"):
        await LocalCluster(tmp_path, libs=tmp_path).start()


def test_the_reason_of_a_failed_start_is_its_own(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    earlier = "java.io.IOException: No space left on device\n"
    log.write_text(
        f"{earlier}12 ERROR fatal\njava.lang.RuntimeException: Unknown version 9\n\tat x\n"
    )
    assert explain(log).startswith("the disk is full: make room")
    assert explain(log, len(earlier)) == (
        f"it said: java.lang.RuntimeException: Unknown version 9 (log: {log})"
    )
    log.write_text("invalid option -- 5\n\n")
    assert explain(log, len(earlier)) == f"it said: invalid option -- 5 (log: {log})"
    assert explain(tmp_path / "none") == f"its log says why: {tmp_path / 'none'}"


async def test_a_taken_port_of_kafka_says_which_file_to_remove(tmp_path: Path) -> None:
    port = any_free("127.0.0.1", 2)
    node = {"broker": port, "controller": port + 1}
    memory = tmp_path / "cluster.json"
    memory.write_text(json.dumps({"cluster_id": "a", "nodes": [node]}))
    with listen_alone("127.0.0.1", port), pytest.raises(BrokerFailed) as failed:
        await LocalCluster(tmp_path, libs=tmp_path).start()
    assert f"port {port} is not free" in str(failed.value)
    assert f"remove {memory} to have another one found" in str(failed.value)
