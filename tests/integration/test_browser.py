"""The example page in a real browser: the replica it reads from is killed, and the sentence goes on."""

import contextlib
import functools
import hashlib
import http.server
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running_replicas import RunningReplicas, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(90)]

PAGE = Path(__file__).resolve().parents[2] / "examples" / "browser"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TOKENS = 80


class Browser:
    """A headless Chromium behind ChromeDriver, by WebDriver's plain HTTP."""

    def __init__(self, chromium: str, chromedriver: str, profile: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            [chromedriver, f"--port={port}", "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self._session = ""
        try:
            until(self._is_up, 20, "ChromeDriver does not answer")
            options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options}
            body = {"capabilities": {"alwaysMatch": wanted}}
            self._session = self._call("POST", "/session", body)["sessionId"]
        except BaseException:
            self.close()
            raise

    def _is_up(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._http.get("/status").status_code == 200
        return False

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, path, json=body if method == "POST" else None)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        self._call("POST", f"/session/{self._session}/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """A script's value."""
        body = {"script": script, "args": list(args)}
        return self._call("POST", f"/session/{self._session}/execute/sync", body)

    def text(self, element_id: str) -> str:
        found: str = self.run(
            "return document.getElementById(arguments[0]).textContent", element_id
        )
        return found

    def close(self) -> None:
        """Ends the browser and the driver."""
        if self._session:
            with contextlib.suppress(httpx.TransportError):
                self._http.request("DELETE", f"/session/{self._session}")
        self._http.close()
        self._driver.terminate()
        self._driver.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no Chromium: `apt-get install chromium chromium-driver`")
    started = Browser(chromium, chromedriver, tmp_path_factory.mktemp("profile"))
    try:
        yield started
    finally:
        started.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Nothing."""


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The origin that serves the page: another one than the replicas'."""
    handler = functools.partial(_Quiet, directory=str(PAGE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def up(
    kafka_libs: Path, browser: Browser, page: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningReplicas]:
    running = RunningReplicas(tmp_path_factory.mktemp("up"), "--cors-origins", page)
    try:
        yield running.wait()
    finally:
        running.stop()


def ask(browser: Browser, page: str, up: RunningReplicas, mode: str, prompt: str) -> None:
    """Fills in the form and sends it, as a user would."""
    browser.open(f"{page}/index.html")
    fields = {
        "replicas": ", ".join(up.replicas),
        "key": up.key,
        "prompt": prompt,
        "tokens": str(TOKENS),
        "mode": mode,
    }
    for name, value in fields.items():
        browser.run("document.getElementById(arguments[0]).value = arguments[1]", name, value)
    browser.run("document.querySelector('button').click()")


@pytest.mark.parametrize("mode", ["fetch", "eventsource"])
def test_the_sentence_goes_on_when_the_replica_it_is_read_from_is_killed(
    browser: Browser, page: str, up: RunningReplicas, mode: str
) -> None:
    for base in up.replicas:  # the one that was killed before is there again
        until(lambda base=base: _is_ready(base), 30, "a replica did not come back")  # type: ignore[misc]
    prompt = f"Tell it by {mode}."
    ask(browser, page, up, mode, prompt)
    until(lambda: len(browser.text("answer").split()) >= 10, 20, browser.text("log") or "no text")
    assert browser.text("replica") == up.replicas[0]
    seen = len(browser.text("answer").split())
    up.kill_replica(0)
    until(lambda: browser.text("state") != "reading", 30, "the answer does not end")
    name = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    assert browser.text("log").startswith(f"{up.replicas[0]}: ")
    assert browser.text("state") == "complete", browser.text("log")
    assert browser.text("answer") == "".join(f"{name}.{index} " for index in range(TOKENS))
    assert browser.text("replica") == up.replicas[1]
    assert 10 <= seen < TOKENS


def _is_ready(base: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{base}/health/ready").status_code == 200
    return False


def test_a_wrong_key_is_told(browser: Browser, page: str, up: RunningReplicas) -> None:
    browser.open(f"{page}/index.html")
    browser.run("document.getElementById('replicas').value = arguments[0]", up.replicas[1])
    browser.run("document.getElementById('key').value = 'no-key-of-ours'")
    browser.run("document.querySelector('button').click()")
    until(lambda: browser.text("state") == "failed", 10, "nothing was told")
    assert "No valid API key" in browser.text("log")


def test_a_page_of_another_origin_may_not_call(
    browser: Browser, page: str, up: RunningReplicas
) -> None:
    browser.open(page.replace("127.0.0.1", "localhost") + "/index.html")
    browser.run("document.getElementById('replicas').value = arguments[0]", up.replicas[1])
    browser.run("document.getElementById('key').value = arguments[0]", up.key)
    browser.run("document.querySelector('button').click()")
    until(lambda: "Failed to fetch" in browser.text("log"), 10, "it was let in")
    assert browser.text("answer") == ""
