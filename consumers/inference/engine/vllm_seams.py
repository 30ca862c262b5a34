"""Where a run goes on from logged tokens: whether it can, and guided decoding from there.

vLLM's own guided decoding begins with the grammar's first character, and its logprobs are those after
the mask, while ours are the model's own. So a guided run that goes on from logged tokens, or that asks
for logprobs, is masked by `vllm_continuation` from its first token on. Whether that can be done is
found out here, before vLLM sees the run; what it then gives is checked again, token by token.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

from consumers.inference.engine.ports import FEATURES, Feature, Run
from consumers.inference.engine.vllm_arguments import PROCESSOR
from consumers.inference.engine.vllm_choice import Choice, Follower
from consumers.inference.engine.vllm_continuation import (
    accepts,
    open_grammars,
    open_matcher,
)
from core.errors import Refusal
from core.recovery import unfaithful
from schemas.requests import ResponseFormat

log = logging.getLogger(__name__)


def structured_outputs(wanted: ResponseFormat) -> StructuredOutputsParams:
    """For vLLM's own guided decoding."""
    if wanted.schema is None:
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=wanted.schema)


class MatcherFollower:
    """Follows by a matcher of xgrammar's."""

    __slots__ = ("_matcher", "schema")

    def __init__(self, matcher: Any, schema: str) -> None:
        self._matcher = matcher
        self.schema = schema

    def accepts(self, token_ids: Sequence[int]) -> bool:
        return accepts(self._matcher, token_ids)


class Seams:
    """Of one engine. `resumes` is what `Engine.resumes` says. One thread compiles grammars.

    A grammar that takes longer than `compile_seconds` is not followed: the other half compiles it
    once more, and its whole batch waits for that.
    """

    def __init__(
        self,
        resumes: frozenset[Feature] = frozenset(),
        backend: Any = None,
        end_ids: Any = (),
        compile_seconds: float = 0.0,
    ) -> None:
        self.resumes = resumes
        self._backend = backend
        self._end_ids = set(end_ids)
        self._compile_seconds = compile_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    @classmethod
    def open(
        cls, config: Any, tokenizer: Any, end_ids: Sequence[int], compile_seconds: float
    ) -> "Seams":
        """As vLLM's settings allow. Reads the vocabulary: a second for a large one."""
        if PROCESSOR not in (config.model_config.logits_processors or ()):
            return cls()
        settings = config.structured_outputs_config
        reasons_first = settings.reasoning_parser and not settings.enable_in_reasoning
        backend = None
        if settings.backend in ("auto", "xgrammar") and not reasons_first:
            backend = open_grammars(config, tokenizer)
        if backend is None:
            log.warning("a guided answer is not resumed: vLLM is set to follow grammars otherwise")
            return cls(FEATURES - {"response_format"})
        return cls(FEATURES, backend, end_ids, compile_seconds)

    async def prepare(self, run: Run, choices: Sequence[Choice]) -> None:
        """Gives a follower to each choice that needs one.

        Raises Refusal (`interrupted`) if a choice cannot go on from its logged tokens.
        """
        body = run.body
        if any(choice.count for choice in choices) and (what := unfaithful(body, self.resumes)):
            raise _interrupted(what)
        wanted = body.response_format
        if wanted is None or self._backend is None:
            return
        loop = asyncio.get_running_loop()
        for choice in choices:
            if choice.ended is not None or not (choice.count or body.logprobs is not None):
                continue
            logged_ids = choice.prompt_ids[len(choice.prompt_ids) - choice.count :]
            try:
                async with asyncio.timeout(self._compile_seconds):
                    follower = await loop.run_in_executor(self._pool, self._follow, wanted)
            except TimeoutError:
                follower = None
            if follower is not None and follower.accepts(logged_ids):
                choice.follower = follower
            elif choice.count:
                raise _interrupted("response_format")

    def close(self) -> None:
        """Waits for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _follow(self, wanted: ResponseFormat) -> Follower | None:
        """None if vLLM would leave it to another library than xgrammar, or refuse it."""
        # as vLLM writes them
        schema = '{"type": "object"}' if wanted.schema is None else json.dumps(wanted.schema)
        try:
            validate_xgrammar_grammar(SamplingParams(structured_outputs=structured_outputs(wanted)))
            return MatcherFollower(open_matcher(self._backend, schema, self._end_ids), schema)
        except (ValueError, RuntimeError, VLLMClientError):
            return None


def _interrupted(reason: str) -> Refusal:
    return Refusal(
        "interrupted", f"The answer was cut off and cannot be continued ({reason}); retry it."
    )
