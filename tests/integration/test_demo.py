"""`inferlog demo` as a viewer meets it: what it prints is true, and it leaves nothing behind."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from inferlog.takeover import KILL_AFTER_TOKENS, STORY, STORY_TOKENS
from tests.memory_stack import scripted_answer
from tests.running_up import clean_environ

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


class Demo:
    """A running demo; `seen` collects every process that it was ever seen to have started."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.outputs = folder / "out.txt", folder / "err.txt"
        self.seen: dict[int, psutil.Process] = {}
        command = (sys.executable, "-m", "inferlog", "demo", "--engine", "scripted")
        environ = {**clean_environ(), "TMPDIR": str(self.temporary), "COLUMNS": "200"}
        with self.outputs[0].open("wb") as out, self.outputs[1].open("wb") as err:
            self.process = subprocess.Popen([*command, *words], stdout=out, stderr=err, env=environ)

    def said(self) -> str:
        return self.outputs[0].read_text()

    def reported(self) -> str:
        return self.outputs[1].read_text()

    def look(self) -> bool:
        """Whether it runs."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.seen |= {child.pid: child for child in children if child.pid not in self.seen}
        return self.process.poll() is None

    def until_it_says(self, what: str, seconds: float = 90.0) -> None:
        deadline_s = time.monotonic() + seconds
        while what not in self.said() + self.reported():
            assert self.look(), self.said() + self.reported()
            assert time.monotonic() < deadline_s, f"never said: {what}"
            time.sleep(0.02)

    def until_ended(self, seconds: float) -> int:
        deadline_s = time.monotonic() + seconds
        while self.look():
            assert time.monotonic() < deadline_s, self.said() + self.reported()
            time.sleep(0.05)
        return self.process.wait()

    def left(self) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(list(self.seen.values()), timeout=10)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        for process in self.seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def folder(kafka_libs: Path, tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize("workers", [2, 1], ids=["with a standby", "alone"])
def test_the_speaker_is_killed_and_every_token_comes_once(folder: Path, workers: int) -> None:
    words = ("--demo-rows", "4", "--no-keep-serving", "--demo-workers", str(workers))
    demo = Demo(folder, *words)
    try:
        assert demo.until_ended(150) == 0, demo.said() + demo.reported()
        said = demo.said()
    finally:
        left = demo.left()
        demo.end()
    assert left == []
    assert list(demo.temporary.iterdir()) == []

    kill = re.search(r"<<< SIGKILL to (worker-[01]), pid (\d+), which says this >>>\n", said)
    seam = re.search(r"<<< (worker-[01])( \(started again\))? goes on with token (\d+) after", said)
    assert kill, said
    assert seam, said
    assert (kill[1] == seam[1]) == bool(seam[2]) == (workers == 1)
    assert int(kill[2]) in demo.seen, "the process that was killed was one of the demo's"
    assert f"{kill[1]} was ended by SIGKILL; starting it again" in demo.reported()

    story = said.partition(f"> {STORY}\n")[2].partition("Seam:")[0]
    text = "".join(line for line in story.splitlines() if "<<<" not in line and "..." not in line)
    assert text == scripted_answer(STORY, STORY_TOKENS)
    before_seam = len(story.partition(seam[0])[0].split(kill[0])[0].split())
    assert KILL_AFTER_TOKENS <= before_seam <= int(seam[3])

    summary = re.search(
        r"^Seam: .*said tokens 0 to (\d+); .* went on with token (\d+)\.$", said, re.MULTILINE
    )
    assert summary, said
    assert int(summary[1]) + 1 == int(summary[2]) == int(seam[3])
    pause = re.search(r"^Pause: +([\d.]+) s between", said, re.MULTILINE)
    assert pause, said
    assert 0 < float(pause[1]) < 30
    assert f"\nResult: {STORY_TOKENS} tokens, 0 lost, 0 repeated.\n" in said
    log = said.partition("What the log says of it")[2]
    order = [
        "published, tier",
        "start 1",
        "acquired",
        f"start 2, goes on after {seam[3]} tokens",
        "finished",
    ]
    assert [word for word in order if word not in log] == []
    assert sorted(order, key=log.index) == order


@pytest.mark.parametrize(
    "phase",
    [
        "starting Kafka",
        "starting api-0",
        "The same request again",
        "starting worker-1",
        "SIGKILL to",
    ],
)
def test_ctrl_c_leaves_nothing_in_any_phase(folder: Path, phase: str) -> None:
    demo = Demo(folder, "--demo-rows", "4", "--no-keep-serving")
    try:
        demo.until_it_says(phase)
        demo.look()
        demo.process.send_signal(signal.SIGINT)
        code = demo.until_ended(60)
        left = demo.left()
    finally:
        demo.end()
    assert code == 130, demo.said() + demo.reported()
    assert left == []
    assert list(demo.temporary.iterdir()) == []
    assert "Traceback" not in demo.said() + demo.reported()
    assert "error:" not in demo.reported()
