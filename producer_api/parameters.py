"""What becomes of every parameter: run, accepted without effect, or refused with a reason.

`docs/parameters.md` is this table; a test compares the two, and both with `public_types`.
"""

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["run", "accepted", "refused"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """`note` is the reason of a refusal, or what there is to know; `neutral` asks for nothing.

    A refused parameter that is null, or one of its neutral values, is let through: clients spell
    out their defaults.
    """

    verdict: Verdict
    note: str = ""
    neutral: tuple[Any, ...] = ()


def _run(note: str = "") -> Parameter:
    return Parameter("run", note)


def _accepted(note: str) -> Parameter:
    return Parameter("accepted", note)


def _refused(note: str, *neutral: Any) -> Parameter:
    return Parameter("refused", note, neutral)


_TEMPLATE = "the model's own chat template is used"
_TOOLS = "tools are not run yet"
_SAMPLER = "sampling is steered by temperature, top_p, penalties, seed and logit_bias"

_BOTH: dict[str, Parameter] = {
    "model": _run("a name from GET /v1/models"),
    "frequency_penalty": _run("-2 to 2"),
    "presence_penalty": _run("-2 to 2"),
    "logit_bias": _run("token id to -100 … 100; at most 1,024 entries"),
    "n": _run("1 to 8 choices"),
    "seed": _run("64-bit integer"),
    "stop": _run("a string or at most 16 strings of 1 to 256 characters"),
    "stream": _run("server-sent events"),
    "stream_options": _run("include_usage; include_obfuscation has no effect; only with stream"),
    "temperature": _run("0 to 2"),
    "top_p": _run("above 0, at most 1"),
    "service_tier": _run("priority, default or auto, flex; the tier used is echoed"),
    "user": _accepted("at most 512 characters; the tenant is known from the key"),
    "metadata": _accepted("at most 16 pairs, 64 and 512 characters"),
    "top_k": _refused(_SAMPLER, -1, 0),
    "min_p": _refused(_SAMPLER, 0),
    "repetition_penalty": _refused(_SAMPLER, 1),
    "min_tokens": _refused(_SAMPLER, 0),
    "ignore_eos": _refused("an answer ends where the model ends it", False),
    "prompt_logprobs": _refused("log probabilities are given for the answer only"),
}

CHAT_PARAMETERS: dict[str, Parameter] = {
    **_BOTH,
    "messages": _run("text of system, developer, user, assistant; at most 1,024; parts are joined"),
    "max_completion_tokens": _run("at least 1; the model's context bounds it"),
    "max_tokens": _run("the older name of max_completion_tokens"),
    "logprobs": _run("true adds the log probability of each token"),
    "top_logprobs": _run("0 to 20 alternatives per token; only with logprobs"),
    "response_format": _run("text, json_object, json_schema; a schema of at most 64 KiB, 16 deep"),
    "parallel_tool_calls": _accepted("there are no tools to call"),
    "prompt_cache_key": _accepted("at most 512 characters; equal beginnings share a worker anyway"),
    "prompt_cache_retention": _accepted("the prefix cache keeps what it has room for"),
    "safety_identifier": _accepted("at most 512 characters"),
    "audio": _refused("answers are text"),
    "chat_template": _refused(_TEMPLATE),
    "chat_template_kwargs": _refused(_TEMPLATE, {}),
    "add_generation_prompt": _refused(_TEMPLATE, True),
    "function_call": _refused(_TOOLS, "none", "auto"),
    "functions": _refused(_TOOLS, []),
    "modalities": _refused("answers are text", ["text"], []),
    "prediction": _refused("predicted outputs are not used"),
    "reasoning_effort": _refused("the effort of a model cannot be chosen", "none"),
    "store": _refused("answers are not stored beyond their retention", False),
    "tool_choice": _refused(_TOOLS, "none", "auto"),
    "tools": _refused(_TOOLS, []),
    "verbosity": _refused("ask for it in the prompt", "medium"),
    "web_search_options": _refused("nothing is looked up on the web"),
}

COMPLETION_PARAMETERS: dict[str, Parameter] = {
    **_BOTH,
    "prompt": _run("one text; lists of prompts and of token ids are refused"),
    "max_tokens": _run("at least 1; the model's context bounds it"),
    "logprobs": _run("0 to 20 alternatives per token"),
    "best_of": _run("only if equal to n: choices are not ranked"),
    "echo": _refused("the prompt is not repeated", False),
    "suffix": _refused("text is not inserted before a suffix", ""),
}
