"""What a stranger types in the first minutes: told in a sentence, whole, on any terminal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError
from rich.table import Table

from inferlog import topics
from inferlog.client_settings import LogReadingSettings, TopicsCommand
from inferlog.data_dir import DataDir, UpState, key_values
from inferlog.local_ports import any_free, listen_alone, url_host
from inferlog.problems import CommandFailed, WrongUsage
from inferlog.status import Status, WorkerStatus, tables
from inferlog.terminal import PIPED_COLUMNS, console
from inferlog.trace import read_trace
from topics.broker import BrokerFailed, LocalCluster
from topics.broker_process import explain
from topics.kafka.clients import describe
from topics.ports import LogError, TopicState
from topics.settings import ClusterSettings

CATALOGUE_OF_FLAGS = ("--kafka-security-protocol", "INFERLOG_KAFKA_SECURITY_PROTOCOL")


def run(*words: str | bytes, stdin: bytes = b"", **environ: str) -> tuple[int, str]:
    """As a user would type it, with nothing of ours set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INFERLOG_")}
    clean.pop("COLUMNS", None)
    done = subprocess.run(
        [sys.executable, "-m", "inferlog", *words],
        input=stdin,
        capture_output=True,
        timeout=25,
        env={**clean, **environ},
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def _state(url: str) -> UpState:
    return UpState(
        pid=os.getpid(),
        url=url,
        replica_urls=(),
        bootstrap=f"127.0.0.1:{any_free('127.0.0.1', 1)}",
        api_keys_file=None,
        metrics={},
        pids={},
    )


# --- what was typed


def test_an_engine_option_without_a_value_is_refused_before_anything_starts(tmp_path: Path) -> None:
    code, said = run(
        *(
            "up",
            "--engine",
            "scripted",
            "--engine-option",
            "slots",
            "--data-dir",
            str(tmp_path / "d"),
        )
    )
    assert code == 2
    assert "'slots': name=value is expected" in said
    assert not (tmp_path / "d").exists()


def test_an_address_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    code, said = run("send", "hi", "--url", "nonsense", "--data-dir", str(tmp_path))
    assert code == 2
    assert "an address such as http://127.0.0.1:8000 is expected" in said


@pytest.mark.parametrize("stdin", [None, b"caf\xe9"])
def test_a_prompt_in_another_encoding_is_a_sentence(stdin: bytes | None, tmp_path: Path) -> None:
    words = (b"caf\xe9",) if stdin is None else ("-",)
    code, said = run("send", *words, "--data-dir", str(tmp_path), stdin=stdin or b"")
    assert code == 2
    assert said == "error: what is to be said is no UTF-8 text\n"


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(tmp_path: Path) -> None:
    code, said = run("send", "-", "--data-dir", str(tmp_path), stdin=b"a" * (4 * 2**20 + 1))
    assert code == 2
    assert "more than 4 MB" in said


def test_a_trace_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with pytest.raises(WrongUsage, match="no file"):
        read_trace(trace)
    trace.write_bytes(b'TIMESTAMP,ContextTokens,GeneratedTokens\n"' + b"a" * 200_000)
    with pytest.raises(WrongUsage, match="row 1, cannot be read"):
        read_trace(trace)


def test_keys_that_cannot_be_read_are_wrong_usage(tmp_path: Path) -> None:
    # so that `up` gives up at once, and does not start a replica five times
    with pytest.raises(WrongUsage, match=r"No such file or directory$"):
        key_values(tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"default:caf\xe9")
    with pytest.raises(WrongUsage, match="no UTF-8"):
        key_values(tmp_path / "latin")


# --- what is running


class Unreachable:
    """A log that is not there."""

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicState]:
        raise LogError("asking for topics: refused")

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked."""
    addresses: list[str] = []

    def open_log(settings: ClusterSettings, _: str) -> Unreachable:
        addresses.append(settings.bootstrap)
        return Unreachable()

    monkeypatch.setattr(ClusterSettings, "open", open_log)
    return addresses


def test_topics_of_nothing_running_say_what_to_start(tmp_path: Path, asked: list[str]) -> None:
    command = TopicsCommand(reading=LogReadingSettings(data_dir=tmp_path))
    with pytest.raises(CommandFailed, match=f"No inferlog up runs on {tmp_path}: start one"):
        topics.check(command)
    assert asked == [ClusterSettings().bootstrap]


def test_topics_are_those_of_the_running_up(tmp_path: Path, asked: list[str]) -> None:
    state = _state("http://127.0.0.1:8000")
    DataDir(tmp_path).write_state(state)
    command = TopicsCommand(reading=LogReadingSettings(data_dir=tmp_path))
    with pytest.raises(CommandFailed, match=f"belongs to the inferlog up of pid {os.getpid()}"):
        topics.check(command)
    elsewhere = replace(command.reading, cluster=ClusterSettings(bootstrap="kafka:9092"))
    with pytest.raises(CommandFailed, match="Does it run there"):
        topics.check(replace(command, reading=elsewhere))
    assert asked == [state.bootstrap, "kafka:9092"]


def test_doctor_does_not_take_the_running_up_for_a_problem(tmp_path: Path) -> None:
    port = any_free("127.0.0.1", 2)
    words = ("doctor", "--port", str(port), "--data-dir", str(tmp_path))
    with listen_alone("127.0.0.1", port):
        _, said = run(*words)
        assert f"problem  ports      {port} taken on 127.0.0.1" in said
        DataDir(tmp_path).write_state(_state(f"http://127.0.0.1:{port}"))
        _, said = run(*words)
    assert f"ok       ports      inferlog is up on them (pid {os.getpid()})" in said


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("localhost", "localhost"),
    ],
)
def test_an_address_is_written_as_a_url_wants_it(host: str, shown: str) -> None:
    assert url_host(host) == shown


def test_an_unreachable_broker_is_told_without_its_kind_three_times() -> None:
    refused = KafkaConnectionError("127.0.0.1:9: refused")
    assert describe(refused).count("KafkaConnectionError") == 1
    assert describe(ConnectionError("connecting: refused")) == "connecting: refused"
    assert describe(ValueError("odd")) == "ValueError: odd"
    assert describe(TimeoutError()) == "TimeoutError"


# --- any terminal


@pytest.mark.parametrize("columns", ["80", "109", "110"])
def test_help_never_cuts_the_name_of_a_flag(columns: str) -> None:
    code, said = run("worker", "--help", COLUMNS=columns, PYTHONIOENCODING="utf-8")
    assert code == 0
    assert "…" not in said
    for name in CATALOGUE_OF_FLAGS:
        assert name in said


def test_output_that_the_locale_cannot_hold_is_no_error() -> None:
    code, said = run(
        *("worker", "--help"), COLUMNS="120", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    )
    assert code == 0
    assert "Traceback" not in said


def _status() -> Status:
    worker = WorkerStatus("vm-8000-0", ("scripted",), "ready", 64, 0, 0, 1234.5, 16, 0.1)
    return Status("default", (), (worker,))


@pytest.mark.parametrize("columns", [80, 120])
def test_the_status_of_a_worker_fits_a_terminal_of_80_columns(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    console().print(tables(_status()))
    shown = capsys.readouterr().out
    for whole in ("vm-8000-0", "scripted", "tokens/s", "0 of 64", "1234.5"):
        assert whole in shown
    assert "…" not in shown


def test_a_table_in_a_pipe_is_not_cut_to_a_terminal_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table()
    table.add_column("word")
    table.add_row("x" * (PIPED_COLUMNS - 10))
    console().print(table)
    assert "x" * (PIPED_COLUMNS - 10) in capsys.readouterr().out


# --- a terminal that is closed

_PROGRAM = """
import asyncio
from runtime.service import signals_to

async def main():
    asked = asyncio.Event()
    with signals_to(asked.set):
        print("now", flush=True)
        async with asyncio.timeout(float({seconds})):
            await asked.wait()
    print("in order", flush=True)

asyncio.run(main())
"""


def test_a_closed_terminal_is_an_orderly_end() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(seconds=20)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "in order\n"
    assert process.returncode == 0


def test_nohup_is_respected() -> None:
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", _PROGRAM.format(seconds=1)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGHUP)
        said, _ = process.communicate(timeout=20)
    # it went on until its own limit
    assert "in order" not in said
    assert process.returncode == 1


# --- a data folder that is not as it should be


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
