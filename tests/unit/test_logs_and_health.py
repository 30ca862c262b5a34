import io
import json
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from inferlog.local_ports import any_free, is_free
from runtime.health import HealthServer, PortTaken
from runtime.logs import HumanFormatter, JsonFormatter, LogSettings, configure
from runtime.metrics import Metrics


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Logging as a process sets it up, into a buffer, restored afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure(LogSettings(level="INFO", format="json"), secrets=["il-topsecret"], stream=out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_a_line_is_json_with_the_request_id(logged: io.StringIO) -> None:
    logging.getLogger("some.module").warning("took %s s", 3, extra={"request_id": "abc"})
    line = json.loads(logged.getvalue())
    assert line["ts"].endswith("Z")
    wanted = {"level": "warning", "logger": "some.module", "event": "took 3 s", "request_id": "abc"}
    assert {name: line[name] for name in wanted} == wanted


def test_a_known_secret_is_masked_in_text_extra_and_trace(logged: io.StringIO) -> None:
    try:
        int("il-topsecret")
    except ValueError:
        logging.getLogger("x").exception("il-topsecret", extra={"header": "Bearer il-topsecret"})
    assert "il-topsecret" not in logged.getvalue()
    assert logged.getvalue().count("***") == 4  # text, extra, line and message of the trace


def test_below_the_level_nothing_is_written(logged: io.StringIO) -> None:
    logging.getLogger("x").debug("not this")
    assert logged.getvalue() == ""


def test_lines_for_a_terminal_hold_the_same() -> None:
    record = logging.LogRecord("x", logging.ERROR, "", 0, "gone: %s", ("disk",), None)
    record.request_id = "abc"
    line = HumanFormatter().format(record)
    assert "error" in line
    assert "gone: disk  request_id=abc" in line
    assert json.loads(JsonFormatter().format(record))["event"] == "gone: disk"


def test_metrics_of_two_processes_do_not_clash_and_have_units() -> None:
    first, second = Metrics(), Metrics()
    first.accepted.labels("premium", "/v1/completions").inc()
    names = [family.name for family in second.registry.collect()]
    assert len(names) == len(set(names)) > 40
    assert all(name.startswith("inferlog_") for name in names)
    for family in second.registry.collect():
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_tokens")), family.name


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_health_tells_state_and_metrics_on_its_own_port(host: str, shown: str) -> None:
    if host == "::1" and not is_free(host, any_free("127.0.0.1", 1)):
        pytest.skip("this machine has no IPv6 loopback")
    metrics = Metrics()
    metrics.slots.set(7)
    well = [True]
    server = HealthServer(host, 0, metrics.registry, lambda: (well[0], {"state": "running"}))
    server.start()
    try:
        base = f"http://{shown}:{server.port}"
        with urllib.request.urlopen(f"{base}/metrics", timeout=5) as answer:
            assert "inferlog_engine_slots 7.0" in answer.read().decode()
        with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
            assert json.load(answer) == {"ok": True, "state": "running"}
        well[0] = False
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{base}/health", timeout=5)
        with caught.value as error:
            assert error.code == 503
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{base}/keys", timeout=5)
        with caught.value as error:
            assert error.code == 404
    finally:
        server.stop()
        server.stop()


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        server = HealthServer("127.0.0.1", port, Metrics().registry, lambda: (True, {}))
        with pytest.raises(PortTaken, match=f"{port}.*INFERLOG_METRICS_PORT"):
            server.start()
