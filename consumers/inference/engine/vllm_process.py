"""vLLM's own process, and the few calls of its asynchronous client that we depend on."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from consumers.inference.engine.ports import EngineDied
from consumers.inference.engine.vllm_seams import Seams

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.25
SHUTDOWN_SECONDS = 10.0

Put = Callable[[Any], None]
"""Takes vLLM's `RequestOutput` of one step, or the exception that ended the request."""


class VllmProcess:
    """Started once, stopped once. All calls on one event loop."""

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self._arguments = arguments
        self._llm: Any = None
        self._loading: asyncio.Future[Any] | None = None
        self._aborts: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Starts the process and loads the model: seconds to minutes. Raises EngineDied."""
        loop = asyncio.get_running_loop()
        # the constructor blocks until the model is loaded; heartbeats must go on meanwhile
        make = partial(AsyncLLM.from_engine_args, self._arguments)
        self._loading = loop.run_in_executor(None, make)
        try:
            # if this is cancelled, `stop` still waits for the engine, and ends its process
            self._llm = await asyncio.shield(self._loading)
        except Exception as error:
            raise EngineDied(f"vLLM did not start: {type(error).__name__}: {error}") from error

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together."""
        return int(self._llm.model_config.max_model_len)

    @property
    def slots(self) -> int:
        """Sequences that run at once."""
        return int(self._llm.vllm_config.scheduler_config.max_num_seqs)

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self._llm.get_tokenizer()

    def vocabulary(self) -> dict[str, Any]:
        """What `schema_compiler` wants to know of the model. Slow enough to be called off the loop."""
        tokenizer = self.tokenizer
        return {
            "tokenizer": tokenizer._tokenizer.to_str(),  # noqa: SLF001  the Rust tokenizer
            "vocab_size": int(self._llm.model_config.get_vocab_size()),
            "stop_token_ids": [tokenizer.eos_token_id],
        }

    def end_ids(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's, and those of the model's settings."""
        found = {self.tokenizer.eos_token_id}
        more = self._llm.model_config.try_get_generation_config().get("eos_token_id")
        found.update(more if isinstance(more, list) else [more])
        return [token_id for token_id in found if token_id is not None]

    def seams(self, compile_seconds: float) -> Seams:
        """What this engine can go on with; reads the vocabulary: a second for a large one."""
        return Seams.open(self._llm.vllm_config, self.tokenizer, self.end_ids(), compile_seconds)

    async def add(
        self,
        request_id: str,
        prompt_ids: list[int],
        params: SamplingParams,
        cache_salt: str,
        put: Put,
    ) -> str:
        """Hands a request over; its results come to `put`. Returns vLLM's own id for it.

        Raises ValueError or VLLMClientError for what vLLM refuses, EngineDeadError. If this is
        cancelled, the request is taken back.
        """
        prompt: Any
        if params.structured_outputs is None:
            prompt = tokens_input(prompt_ids, cache_salt=cache_salt or None)
        else:
            # this form is checked in vLLM's own thread; a schema's check would hold the loop up
            prompt = TokensPrompt(prompt_token_ids=prompt_ids)
            if cache_salt:
                prompt["cache_salt"] = cache_salt
        adding = asyncio.ensure_future(self._llm.add_request(request_id, prompt, params))
        try:
            collector = await asyncio.shield(adding)
        except asyncio.CancelledError:
            adding.add_done_callback(self._take_back)
            raise
        finally:
            del adding  # if it failed it holds its error, and that this frame: no such cycle
        # A collector is made for a task that waits on it, one per request. Its `put` is called by
        # vLLM's output loop, on this event loop; taking its place saves a task switch per token.
        collector.put = put
        early = collector.get_nowait()
        if early is not None:
            put(early)
        return str(collector.request_id)

    def abort(self, ids: Sequence[str]) -> None:
        """Frees their slots a moment later. Ids that ended are ignored."""
        if ids and self._llm is not None:
            task = asyncio.create_task(self._abort(list(ids)))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    async def died(self) -> None:
        """Returns once the process is gone; without requests it would tell nobody."""
        while not self._llm.errored:
            await asyncio.sleep(WATCH_SECONDS)

    async def stop(self) -> None:
        """Ends the process, a loading one as soon as it has loaded. Idempotent."""
        loading, self._loading = self._loading, None
        if loading is None:
            return
        for task in [*self._aborts]:
            task.cancel()
        await asyncio.gather(*self._aborts, return_exceptions=True)
        llm, self._llm = self._llm, None
        if llm is None:
            try:
                llm = await loading
            except Exception as error:  # noqa: BLE001 whatever it was, `load` has said it
                log.debug("vLLM had not started: %s", type(error).__name__)
                return
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # it would take the end that is wanted for a death, and say so
        await asyncio.to_thread(llm.shutdown, SHUTDOWN_SECONDS)

    def _take_back(self, adding: "asyncio.Future[Any]") -> None:
        if not adding.cancelled() and adding.exception() is None:
            self.abort([adding.result().request_id])

    async def _abort(self, ids: list[str]) -> None:
        try:
            await self._llm.abort(ids, internal=True)
        except EngineDeadError:
            log.debug("nothing to abort: vLLM's process is gone")
