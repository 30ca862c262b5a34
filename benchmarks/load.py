"""Orders to the load client, and the process that carries them out."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Self

Kind = Literal["accept", "whole", "streamed"]

PATHS: dict[Kind, str] = {
    "accept": "/v1/requests",
    "whole": "/v1/chat/completions",
    "streamed": "/v1/chat/completions",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`requests` requests over `clients` connections; prompts are numbered from `first`."""

    port: int
    key: str
    kind: Kind
    requests: int
    clients: int
    tokens: int
    first: int = 0
    keys: Sequence[str] = ()
    """The clients' keys, taken in turn; none: all have `key`."""
    prompt_words: int = 5
    """At least so many: what is missing is filled up."""
    ramp_seconds: float = 0.0
    """The clients begin one after the other within this time."""
    client: Literal["raw", "httpx"] = "raw"
    check: bool = False
    """Compare every answer word for word: costs the client much CPU, the servers none."""
    keep_times: bool = False
    count_events: bool = False
    """How many events arrive in each second, too."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What the client measured of itself."""

    seconds: float
    cpu_seconds: float
    first_byte_seconds: Sequence[float]
    events_at: Mapping[str, int]
    """Second of the monotonic clock, which all processes of a machine share -> events in it."""


class JsonProcess:
    """A module of this folder as a process: a line of JSON in, a line of JSON out. A context manager."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Blocks until it has answered. Raises SystemExit if it gave up."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the load client gave up: the line above says why")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class LoadClient(JsonProcess):
    """The closed-loop client."""

    def __init__(self) -> None:
        super().__init__("load_client")

    def carry_out(self, order: Order) -> Carried:
        """Blocks until all is answered. Raises SystemExit if the client gave up."""
        return Carried(**self.ask(asdict(order)))
