"""What becomes of every parameter: run, accepted without effect, or refused with a reason.

`docs/parameters.md` shows these tables; a test compares the two.
"""

from collections.abc import Mapping

from schemas.requests import Endpoint, Tier

RUN_BOTH = frozenset(
    [
        "model",
        "max_tokens",
        "n",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "logprobs",
        "logit_bias",
        "response_format",
        "stream",
        "stream_options",
        "service_tier",
    ]
)
RUN: Mapping[Endpoint, frozenset[str]] = {
    "/v1/chat/completions": RUN_BOTH | {"messages", "max_completion_tokens", "top_logprobs"},
    "/v1/completions": RUN_BOTH | {"prompt"},
    "/v1/responses": frozenset(
        [
            "model",
            "input",
            "instructions",
            "max_output_tokens",
            "temperature",
            "top_p",
            "text",
            "stream",
            "background",
            "store",
            "metadata",
            "service_tier",
        ]
    ),
}
WITHOUT_EFFECT = frozenset(
    [
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "best_of",
        "echo",
        "suffix",
    ]
)
REFUSED: Mapping[str, str] = {
    "tools": "tools are not supported yet",
    "tool_choice": "tools are not supported yet",
    "parallel_tool_calls": "tools are not supported yet",
    "functions": "functions are not supported; tools are not supported yet",
    "function_call": "functions are not supported; tools are not supported yet",
    "modalities": "only text is supported",
    "audio": "only text is supported",
    "prediction": "predicted outputs are not supported",
    "reasoning_effort": "the models served here have no reasoning effort",
    "verbosity": "the models served here have no verbosity",
    "web_search_options": "this service does not reach the web",
    "chat_template": "the template is the operator's, never the client's",
    "chat_template_kwargs": "the template is the operator's, never the client's",
}
_NO_MEMORY = "earlier turns are not kept: send them in 'input'"
RESPONSES_WITHOUT_EFFECT = frozenset(
    [
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "stream_options",
        "parallel_tool_calls",
        "tool_choice",
        "top_logprobs",
        "truncation",
    ]
)
"""`response_bodies` says which of their values ask for nothing; others are refused."""
RESPONSES_REFUSED: Mapping[str, str] = {
    "tools": "tools are not supported yet",
    "max_tool_calls": "tools are not supported yet",
    "include": "nothing more than the text of an answer can be included",
    "reasoning": "the models served here have no reasoning effort",
    "previous_response_id": _NO_MEMORY,
    "conversation": _NO_MEMORY,
    "context_management": _NO_MEMORY,
    "prompt": "prompt templates are not supported",
    "moderation": "moderation is not supported",
    "background_options": "there is one kind of background: use 'service_tier'",
    "image": "only text is supported",
    "modalities": "only text is supported",
    "access_programs": "access programs are not supported",
    "chat_template": "the template is the operator's, never the client's",
    "chat_template_kwargs": "the template is the operator's, never the client's",
}
TIERS_BY_NAME: Mapping[str, Tier] = {
    "priority": "premium",
    "default": "standard",
    "auto": "standard",
    "flex": "free",
}
NAMES_BY_TIER: Mapping[Tier, str] = {
    "premium": "priority",
    "standard": "default",
    "free": "flex",
    "batch": "flex",
}
