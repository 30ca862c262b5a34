"""What vLLM reads from the environment alone is set before it is imported; options are not overruled."""

import os

import pytest

from consumers.inference.engine import vllm_settings

SPACE = "VLLM_CPU_KVCACHE_SPACE"


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", found)
    return found


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ((), None, "1"),
        (("max_num_seqs=4",), None, "1"),
        ((), "3", "3"),
        (("kv_cache_memory_bytes=1000000",), None, None),
        (("kv_cache_memory_bytes=1000000",), "3", "3"),
    ],
)
def test_the_cache_is_as_large_as_the_option_says_else_one_gib(
    environ: dict[str, str], options: tuple[str, ...], before: str | None, after: str | None
) -> None:
    if before is not None:
        environ[SPACE] = before
    vllm_settings.prepare_environment("a-model", options)
    assert environ.get(SPACE) == after
