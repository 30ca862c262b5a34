"""What a run asks of vLLM: its prompt as tokens, its sampling parameters, what is left to do.

All of it is slow enough (templates, tokenising) to be called off the event loop, from one thread:
a Hugging Face tokenizer is not made for two at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.structured_output.backend_guidance import has_guidance_unsupported_json_features
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

from consumers.inference.engine.ports import Logged, Run
from consumers.inference.engine.vllm_arguments import CONTINUATION, Continued
from consumers.inference.engine.vllm_choice import Choice
from consumers.inference.engine.vllm_seams import structured_outputs
from core.errors import Refusal
from schemas.requests import Body, Message

_SEED_STRIDE = 1_000_003
"""More than there are choices, so that no other choice's seed is met."""


@dataclass(slots=True)
class Prepared:
    """A run, ready for vLLM: its choices that are not known to have ended.

    `max_tokens` is that of the whole answer, logged tokens included.
    """

    prompt_tokens: int
    max_tokens: int
    choices: list[Choice]


class Preparer:
    """Turns runs into token ids and choices for one model. `end_ids` end an answer.

    `max_tokens_default` is what a run without `max_tokens` may have, if the context leaves it.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        context_tokens: int,
        max_tokens_default: int,
        end_ids: Sequence[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._context_tokens = context_tokens
        self._end_ids = frozenset(end_ids)
        self._max_tokens_default = max_tokens_default

    def prepare(self, run: Run) -> Prepared:
        """Raises Refusal, whose message never repeats the prompt."""
        body = run.body
        prompt_ids = self._prompt_ids(body)
        max_tokens = self._max_tokens(len(prompt_ids), body.max_tokens)
        choices = [
            self._choice(run, index, logged, prompt_ids, max_tokens)
            for index, logged in enumerate(run.logged or (Logged(),) * body.n)
            if logged.finish_reason is None  # otherwise its end was said already
        ]
        return Prepared(len(prompt_ids), max_tokens, choices)

    def _choice(
        self, run: Run, index: int, logged: Logged, prompt_ids: list[int], max_tokens: int
    ) -> Choice:
        choice = Choice(run.run_id, index, self._tokenizer, prompt_ids, run.body)
        ended_by_token = bool(logged.token_ids) and logged.token_ids[-1] in self._end_ids
        choice.prime(logged, ended_by_token=ended_by_token, max_tokens=max_tokens)
        return choice

    def _prompt_ids(self, body: Body) -> list[int]:
        if body.messages is not None:
            return self._chat_ids(body.messages)
        ids: list[int] = self._tokenizer(body.prompt or "")["input_ids"]
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise Refusal("invalid_request", "The prompt is empty.", param="prompt")
        return list(ids)

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise Refusal(
                "invalid_request",
                f"The model {self._name!r} has no chat template; use /v1/completions.",
                param="model",
            )
        turns: list[dict[str, str]] = []
        for message in messages:
            # templates know the older name of this role
            role = "system" if message.role == "developer" else message.role
            turn = {"role": role, "content": message.content}
            turns.append(turn if message.name is None else turn | {"name": message.name})
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except (TemplateError, TypeError, ValueError):
            raise Refusal(
                "invalid_request",
                f"The chat template of {self._name!r} does not take these messages; "
                "look at their roles and their order.",
                param="messages",
            ) from None
        return list(ids)

    def _max_tokens(self, prompt_tokens: int, wanted: int | None) -> int:
        left = self._context_tokens - prompt_tokens
        if left < (wanted or 1):
            answer = f" and {wanted} for the answer" if wanted else ""
            raise Refusal(
                "context_length_exceeded",
                f"The context of {self._name!r} is {self._context_tokens} tokens; this request "
                f"has {prompt_tokens} in its prompt{answer}. Shorten the prompt"
                + (" or lower max_tokens." if wanted else "."),
                param="messages" if wanted is None else "max_tokens",
            )
        return min(self._max_tokens_default, left) if wanted is None else wanted


def compilers_for(schema: dict[str, Any]) -> list[str]:
    """Which of `schema_compiler`'s compilers vLLM (its choice left at `auto`) would try, in order.

    None for what only outlines would take: it builds automata without any bound.
    """
    names = [] if has_xgrammar_unsupported_json_features(schema) else ["xgrammar"]
    return names if has_guidance_unsupported_json_features(schema) else [*names, "guidance"]


def sampling_params(body: Body, choice: Choice, max_tokens: int) -> SamplingParams:
    """Of one choice that goes on from what was logged. Raises ValueError, or vLLM's own errors.

    Text is made here, not in vLLM (`detokenize`), so that one path serves new and resumed runs;
    stop strings are text, so they are ours too. What looks back at the logged tokens is done by
    `vllm_continuation`, and then not by vLLM.
    """
    penalised = choice.count > 0 and bool(body.presence_penalty or body.frequency_penalty)
    follower = choice.follower
    continued = None
    if penalised or follower is not None:
        continued = Continued(
            choice.count,
            body.presence_penalty if penalised else 0.0,
            body.frequency_penalty if penalised else 0.0,
            None if follower is None else follower.schema,
        )
    structured = None
    if body.response_format is not None and follower is None:
        structured = structured_outputs(body.response_format)
    return SamplingParams.from_optional(
        # each choice is a request of its own; vLLM too gives choice i the seed plus i
        n=1,
        seed=None if body.seed is None else _seed(body.seed, choice),
        max_tokens=max_tokens - choice.count,
        temperature=body.temperature,
        top_p=body.top_p,
        presence_penalty=0.0 if penalised else body.presence_penalty,
        frequency_penalty=0.0 if penalised else body.frequency_penalty,
        logprobs=body.logprobs,
        logit_bias=body.logit_bias,
        structured_outputs=structured,
        extra_args=None if continued is None else {CONTINUATION: continued.to_argument()},
        output_kind=RequestOutputKind.DELTA,
        detokenize=False,
        skip_clone=False,
    )


def _seed(seed: int, choice: Choice) -> int:
    """The state behind the logged tokens cannot be had again, so a resumed run gets another seed.

    With the same one, its draws would be those that gave the answer's beginning.
    """
    moved = seed + choice.index + _SEED_STRIDE * choice.count
    return (moved + 2**63) % 2**64 - 2**63
