"""The request record: what a client, or a topic producer, asks for."""

from typing import Any, Literal

from schemas.wire import Wire

Tier = Literal["premium", "standard", "free", "batch"]
TIERS: tuple[Tier, ...] = ("premium", "standard", "free", "batch")

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]

CHAT: Endpoint = "/v1/chat/completions"
COMPLETIONS: Endpoint = "/v1/completions"
RESPONSES: Endpoint = "/v1/responses"
"""Run as a chat; only what clients are shown differs."""

Role = Literal["system", "developer", "user", "assistant"]


class Message(Wire, frozen=True):
    """One chat message. `content` is text; parts of type text are joined before they get here."""

    role: Role
    content: str
    name: str | None = None


class ResponseFormat(Wire, frozen=True):
    """Guided decoding: any JSON object, or JSON that follows `schema` (a JSON Schema)."""

    type: Literal["json_object", "json_schema"]
    schema: dict[str, Any] | None = None


class Body(Wire, frozen=True):
    """The validated, canonical form of what is to be run; the same for every endpoint.

    Exactly one of `messages` (chat, responses) and `prompt` (completions) is set. `max_tokens` None
    means what the context leaves, at most the default limit. `logprobs` None means none, else the
    number of alternatives per token (0: the chosen token alone). Bounds are those of `core.limits`.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None


START_SECONDS_DEFAULT = 30.0


class Deadlines(Wire, frozen=True):
    """Budgets in seconds, counted from the record's append time on the broker's clock.

    `start_seconds`: to the first start; `first_token_seconds`: from the latest start to the first
    new token; `total_seconds`: to the terminal.
    """

    start_seconds: float = START_SECONDS_DEFAULT
    first_token_seconds: float = 35.0
    total_seconds: float = 600.0

    def own_start_seconds(self) -> float | None:
        """The start deadline as headers tell it: None where it is the default one."""
        return None if self.start_seconds == START_SECONDS_DEFAULT else self.start_seconds


class ResponseEcho(Wire, frozen=True):
    """What a response object repeats of its request, so that any replica can render it from the log.

    It travels with every `Accepted` and `Started`, so it is small: `instructions` (None) and
    `text_format` (OpenAI's `text.format` object; None is plain text, empty is left out) are left out
    where they exceed `Limits.echo_bytes`, which changes nothing of what is run.
    """

    instructions: str | None = None
    metadata: dict[str, str] | None = None
    store: bool = True
    background: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    max_output_tokens: int | None = None
    text_format: dict[str, Any] | None = None
    user: str | None = None


class RequestInfo(Wire, frozen=True):
    """What any replica must know of a request to answer for it before its first token."""

    endpoint: Endpoint
    model: str
    tier: Tier
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    total_seconds: float = 600.0
    response: ResponseEcho | None = None


class Request(Wire, frozen=True):
    """A record on `requests.<pool>.<tier>`.

    `id` is a UUIDv7 with the reply partition (`schemas.ids`). `reply_from` is a hint: an offset of
    the reply partition that lies before the request's first event; it is clamped, never trusted.
    """

    id: str
    tenant: str
    tier: Tier
    model: str
    endpoint: Endpoint
    body: Body
    v: Literal[1] = 1
    pool: str = "default"
    deadlines: Deadlines = Deadlines()
    stream: bool = False
    include_usage: bool = False
    reply_from: int | None = None
    redrive_of: str | None = None
    response: ResponseEcho | None = None

    def info(self) -> RequestInfo:
        """The part that `Accepted` and `Started` repeat."""
        return RequestInfo(
            endpoint=self.endpoint,
            model=self.model,
            tier=self.tier,
            n=self.body.n,
            stream=self.stream,
            include_usage=self.include_usage,
            total_seconds=self.deadlines.total_seconds,
            response=self.response,
        )
