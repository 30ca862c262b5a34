"""The real parts, each started once for the whole session."""

import importlib.util
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from xdist.scheduler import LoadScopeScheduling

from consumers.inference.engine.options import make_engine
from inferlog.model_download import model_dir
from tests.engine_recorder import EngineRecorder
from topics.broker import LocalCluster
from topics.kafka_download import libs_dir

STARTS_PROCESSES = ("tests/faults/", "tests/integration/", "tests/soak/")


class SideBySide(LoadScopeScheduling):  # type: ignore[misc]  # xdist carries no types
    """Who runs beside whom when two processes run the tests (`make test`).

    One engine and one broker serve all tests of a process, so vLLM's tests stay together; and so
    does what starts whole stacks and watches clocks: two at once starve each other's broker. Pure
    tests run beside them, by file, and the contract suites, with a broker of their own. (By marks,
    xdist 3.8 cannot: it names groups in a private attribute that pytest 9.2 no longer has.)
    """

    def _split_scope(self, nodeid: str) -> str:
        if "vllm" in nodeid:
            return "vllm"
        path = nodeid.split("::", 1)[0]
        if path.startswith("tests/contract/"):
            return "contract"
        return "processes" if path.startswith(STARTS_PROCESSES) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SideBySide:
    """pytest-xdist's hook."""
    return SideBySide(config, log)


@pytest.fixture(scope="session")
def kafka_libs() -> Path:
    """The folder of Kafka's jars."""
    libs = libs_dir()
    if libs is None:
        pytest.skip("Kafka's files are not in the cache: `make setup` fetches them")
    return libs


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka_bootstrap(
    kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """The address of one local broker, shared by all tests: each makes topics of its own."""
    cluster = LocalCluster(tmp_path_factory.mktemp("kafka"), libs=kafka_libs)
    try:
        yield await cluster.start()
    finally:
        await cluster.stop()


@pytest.fixture(scope="session")
def vllm_model_dir() -> Path:
    """The small real model's folder, where vLLM can run it."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: `make setup ENGINE=vllm`")
    folder = model_dir()
    if folder is None:
        pytest.skip("the model is not in the cache: `make setup ENGINE=vllm` makes it")
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_recorder(vllm_model_dir: Path) -> AsyncIterator[EngineRecorder]:
    """One real engine for all tests, with few slots; float32, in which a resumed answer is exact."""
    options = ["dtype=float32", "max_num_seqs=4", "max_model_len=2048"]
    with warnings.catch_warnings():
        # what vLLM's libraries deprecate among themselves, while they are imported and compiled
        warnings.simplefilter("ignore")
        recorder = EngineRecorder(make_engine("vllm", str(vllm_model_dir), options))
        try:
            yield await recorder.start()
        finally:
            await recorder.engine.stop()
