"""One choice of a run on vLLM: from token ids to visible text, also over a resume seam.

vLLM gives token ids; text is made here by the tokenizers library's own streaming decoder, fed with
every token from the first, logged ones too. So a resumed run says what the uninterrupted one would
have said, wherever the cut fell: inside a character, or inside a stop string.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

from consumers.inference.engine.ports import Logged, Output
from core.text import StopScanner
from schemas.replies import FinishReason, TokenLogprob
from schemas.requests import Body

_TAIL_TOKENS = 32
_INVALID_PREFIX = "Invalid prefix encountered"


class Follower(Protocol):
    """Where a choice is in its grammar, the JSON that follows `schema`."""

    schema: str

    def accepts(self, token_ids: Sequence[int]) -> bool:
        """Goes on by these tokens. False: they are no beginning of what the grammar allows."""
        ...


class Choice:
    """Its tokens so far are counted, not kept. `ended` says how, once it has."""

    __slots__ = (
        "_decoder",
        "_logprobs",
        "_scanner",
        "_stops",
        "_tokenizer",
        "count",
        "ended",
        "follower",
        "index",
        "internal_id",
        "pending_text",
        "prompt_ids",
        "run_id",
    )

    def __init__(
        self, run_id: int, index: int, tokenizer: Any, prompt_ids: list[int], body: Body
    ) -> None:
        self.run_id = run_id
        self.prompt_ids = prompt_ids
        """What vLLM is given: the prompt, and the logged tokens behind it."""
        self.index = index
        self.count = 0
        self.ended: FinishReason | None = None
        self.internal_id: str | None = None
        """vLLM's own id of the request, once it has been handed over."""
        self.follower: Follower | None = None
        """Set where this choice is guided by us and not by vLLM."""
        self.pending_text = ""
        self._tokenizer = tokenizer._tokenizer  # noqa: SLF001 the Rust tokenizer, which decoders take
        # The end of the prompt decides, in some vocabularies, whether a space comes first. All of a
        # long prompt would be decoded at the first token, on the event loop.
        self._decoder = DecodeStream(ids=prompt_ids[-_TAIL_TOKENS:], skip_special_tokens=True)
        self._stops = body.stop
        self._scanner = StopScanner(body.stop)
        self._logprobs = body.logprobs

    def prime(self, logged: Logged, *, ended_by_token: bool, max_tokens: int) -> None:
        """Goes on after what an earlier run logged; finish conditions come first.

        Sets `ended` when nothing is left to run; `pending_text` is what the earlier run held back
        and may be shown now.
        """
        ids = logged.token_ids
        self.count = len(ids)
        if not ids:
            return
        self.prompt_ids = [*self.prompt_ids, *ids]
        # the token that ended the answer is no part of its text
        text = "".join([self._decode(token_id) for token_id in ids[: len(ids) - ended_by_token]])
        self._scanner = StopScanner(self._stops, text[len(logged.text) :])
        over = ended_by_token or self.count >= max_tokens
        self.pending_text, stopped = self._scanner.feed("", final=over)
        if stopped or ended_by_token:
            self.ended = "stop"
        elif over:
            self.ended = "length"

    def closing(self) -> Output:
        """The report of a choice that ended without a new token."""
        return Output(self.run_id, self.index, (), self.pending_text, None, self.ended)

    def advance(
        self,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None,
        logprobs: Sequence[Mapping[int, Any]] | None,
    ) -> Output:
        """New tokens from vLLM; tokens behind the one that completed a stop string are dropped."""
        shown = self.pending_text
        self.pending_text = ""
        # a token that ends the answer (not its length) is counted and has no text
        textless = len(token_ids) - 1 if finish_reason == "stop" else len(token_ids)
        used = 0
        for token_id in token_ids:
            piece = self._decode(token_id) if used < textless else ""
            used += 1
            visible, stopped = self._scanner.feed(piece)
            shown += visible
            if stopped:
                finish_reason = "stop"
                break
        if finish_reason is not None:
            shown += self._scanner.feed("", final=True)[0]
            self.ended = finish_reason
        self.count += used
        ids = tuple(token_ids[:used])
        found = None
        if self._logprobs is not None and logprobs is not None:
            found = tuple(
                self._logprob(token_id, ranked)
                for token_id, ranked in zip(ids, logprobs, strict=False)
            )
        return Output(self.run_id, self.index, ids, shown, found, finish_reason)

    def _decode(self, token_id: int) -> str:
        try:
            return self._decoder.step(self._tokenizer, token_id) or ""
        except Exception as error:
            # the library has no class of its own for this; seen with bytes that are no text at all
            if not str(error).startswith(_INVALID_PREFIX):
                raise
            self._decoder = DecodeStream(skip_special_tokens=True)
            return self._decoder.step(self._tokenizer, token_id) or ""

    def _logprob(self, token_id: int, ranked: Mapping[int, Any]) -> TokenLogprob:
        count = self._logprobs or 0
        best = sorted(ranked.items(), key=lambda item: item[1].rank or 0)[:count]
        return TokenLogprob(
            token=self._token_text(token_id),
            logprob=_finite(ranked[token_id].logprob),
            top=tuple((self._token_text(other), _finite(at.logprob)) for other, at in best),
        )

    def _token_text(self, token_id: int) -> str:
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text


def _finite(logprob: float) -> float:
    """Minus infinity is no JSON; OpenAI's answers use this number for what cannot happen."""
    return max(logprob, -9999.0)
