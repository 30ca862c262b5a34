import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferlog.cli import LETTERS, TABLE, build
from inferlog.data_dir import DataDir, UpState, first_key, key_values
from inferlog.held_ports import HeldPorts
from inferlog.local_ports import any_free, is_free
from inferlog.problems import CommandFailed
from runtime.settings import describe

TERMINAL = {"COLUMNS": "80"}


def run(*words: str, **environ: str) -> tuple[int, str]:
    """The command in a process of its own, as a user would type it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INFERLOG_")}
    done = subprocess.run(
        [sys.executable, "-m", "inferlog", *words],
        capture_output=True,
        text=True,
        timeout=25,
        env={**clean, **TERMINAL, **environ},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "settings", "summary"), TABLE)
def test_help_names_every_flag_with_its_variable_unit_and_default(
    name: str, settings: type[object], summary: str
) -> None:
    result = CliRunner(env=TERMINAL).invoke(build(), [name, "--help"])
    assert result.exit_code == 0
    assert summary in result.output
    said = " ".join(result.output.split())  # in columns, on a narrow terminal too
    assert "INFERLOG_CACHE_DIR (default: " in said
    for it in describe(settings):
        if it.required or (name == "up" and it.name == "cluster.bootstrap"):
            continue
        assert it.env in said, it.env
        if not it.secret:
            assert f"--{it.flag_name}" in said
            facts = [it.unit] if it.unit else []
            told = "; ".join([*facts, f"default: {it.default or 'none'}", it.env])
            assert f"({told})" in said or "/" in told, told  # a path may be broken over lines


@pytest.mark.parametrize("name", [name for name, _, _, _ in LETTERS])
def test_help_of_what_concerns_dead_letters_names_every_flag(name: str) -> None:
    settings = next(it for known, _, it, _ in LETTERS if known == name)
    result = CliRunner(env=TERMINAL).invoke(build(), ["dead-letters", name, "--help"])
    assert result.exit_code == 0
    flags = [f"--{it.flag_name}" for it in describe(settings) if not (it.required or it.secret)]
    assert [flag for flag in flags if flag not in result.output] == []


def test_a_secret_is_never_a_flag() -> None:
    result = CliRunner(env=TERMINAL).invoke(build(), ["api", "--help"])
    assert "INFERLOG_API_KEY" in result.output
    assert "--api-key " not in result.output


def test_a_wrong_value_is_a_sentence_and_exit_2_with_no_trace() -> None:
    code, said = run("up", "--port", "abc", "--workers", "0")
    assert code == 2
    assert "--port=abc: a whole number is expected" in said
    assert "--workers=0: at least 1 is needed" in said
    assert "Traceback" not in said


def test_an_unknown_flag_names_what_may_be_meant() -> None:
    code, said = run("up", "--wrokers", "2")
    assert code == 2
    assert "--workers" in said


def test_a_misspelt_variable_is_pointed_out() -> None:
    _, said = run("doctor", "--json", INFERLOG_PROT="1")
    assert "warning: INFERLOG_PROT is not a setting; is INFERLOG_PORT meant?" in said


def test_send_without_anything_running_says_what_to_do(tmp_path: Path) -> None:
    code, said = run("send", "hello", "--data-dir", str(tmp_path))
    assert code == 1
    assert "Start one, or name an API with --url" in said


def test_send_to_nobody_is_a_sentence(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{any_free('127.0.0.1', 1)}"
    code, said = run(
        "send", "hi", "--url", url, "--data-dir", str(tmp_path), INFERLOG_API_KEY="k" * 8
    )
    assert code == 1
    assert f"nobody answers at {url}" in said
    assert "Traceback" not in said


def test_an_id_that_is_none_is_refused_before_the_log_is_read() -> None:
    code, said = run("log", "nonsense")
    assert code == 2
    assert "is no request id" in said


def test_a_second_up_on_the_same_folder_is_told_the_pid(tmp_path: Path) -> None:
    first = DataDir(tmp_path)
    first.lock()
    try:
        with pytest.raises(CommandFailed, match=rf"already up \(pid {os.getpid()}\)"):
            DataDir(tmp_path).lock()
    finally:
        first.release()
        first.release()
    second = DataDir(tmp_path)
    second.lock()
    second.release()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandFailed, match="Choose another folder with --data-dir"):
        DataDir(tmp_path / "file" / "inside").lock()


def test_a_key_is_generated_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    folder = DataDir(tmp_path)
    path = folder.keys_file()
    key = first_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key is not None
    assert len(key) > 30
    assert first_key(folder.keys_file()) == key


def test_the_default_tenants_key_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# keys\nother:key-of-other\n\ndefault:with:colon\nbroken\n")
    assert key_values(path) == ["with:colon", "key-of-other"]


def test_the_state_of_a_process_that_is_gone_is_not_believed(tmp_path: Path) -> None:
    folder = DataDir(tmp_path)
    assert folder.read_state() is None
    state = UpState(
        pid=os.getpid(),
        url="http://127.0.0.1:1",
        replica_urls=("http://127.0.0.1:2",),
        bootstrap="127.0.0.1:3",
        api_keys_file=None,
        metrics={"api-0": 4},
        pids={},
    )
    folder.write_state(state)
    assert folder.read_state() == state
    assert stat.S_IMODE((tmp_path / "up.json").stat().st_mode) == 0o600
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder.write_state(replace(state, pid=gone.pid))
    assert folder.read_state() is None


def test_a_port_shared_by_reuse_counts_as_taken() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(CommandFailed, match=f"port {port} .* taken .*--port"):
            HeldPorts().take("127.0.0.1", [port], "--port")
        held = HeldPorts()
        assert port not in held.take_from("127.0.0.1", port, 2)
        held.release()


def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(CommandFailed, match="Is the address one of this machine"):
        HeldPorts().take("192.0.2.1", [18000], "--port")
