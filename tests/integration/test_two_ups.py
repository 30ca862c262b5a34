"""Two `inferlog up` of one user, started at the same moment on one machine."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferlog.held_ports import CAN_HOLD
from inferlog.local_ports import any_free
from tests.running_up import clean_environ

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


class Up:
    """One of them."""

    def __init__(self, folder: Path, port: int, metrics_port: int) -> None:
        self.folder = folder
        self.output = folder / "up.txt"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "inferlog", "up", "--engine", "scripted"),
                    *("--data-dir", str(folder), "--port", str(port)),
                    *("--metrics-port", str(metrics_port), "--drain-seconds", "1"),
                ],
                stdout=out,
                stderr=out,
                env=clean_environ(),
            )

    def said(self) -> str:
        return self.output.read_text()

    def settled(self) -> bool:
        """It is up, or it has ended."""
        return "Inferlog is up." in self.said() or self.process.poll() is not None

    def metrics(self) -> set[int]:
        found: dict[str, int] = json.loads((self.folder / "up.json").read_text())["metrics"]
        return set(found.values())

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()


@pytest.fixture
def ups(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Up]]:
    """Two that want the same API port, and one with its own; all the same metrics ports."""
    port, other, metrics_port = (any_free("127.0.0.1", count) for count in (2, 2, 6))
    started = [
        Up(tmp_path_factory.mktemp(f"up{index}"), wanted, metrics_port)
        for index, wanted in enumerate((port, other, port))
    ]
    try:
        yield started
    finally:
        for it in started:
            it.end()


@pytest.mark.skipif(not CAN_HOLD, reason="ports are held on Linux alone")
def test_each_gets_ports_of_its_own_or_says_which_is_taken(ups: list[Up]) -> None:
    deadline_s = time.monotonic() + 120
    while not all(it.settled() for it in ups):
        assert time.monotonic() < deadline_s, [it.said() for it in ups]
        time.sleep(0.1)
    up = [it for it in ups if it.process.poll() is None]
    ended = [it for it in ups if it.process.poll() is not None]
    assert ups[1] in up
    assert (len(up), len(ended)) == (2, 1), [it.said() for it in ups]
    assert ended[0].process.returncode == 1
    assert "is taken by another process" in ended[0].said()
    # nobody had to start again
    assert not any("starting it again" in it.said() for it in ups)
    assert up[0].metrics().isdisjoint(up[1].metrics())
    for it in up:
        it.process.send_signal(signal.SIGTERM)
    for it in up:
        it.process.wait(60)
        assert it.process.returncode == 0, it.said()
