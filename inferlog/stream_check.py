"""Is an answer whole? Each is checked for tokens that are missing, come twice, or are another's.

The scripted engine says which token each one is (`a1b2c3.0 a1b2c3.1 ...`, of this very prompt), so
every token is looked at. Of a real model the positions are: they may only rise, and the last must be
the number of tokens that the usage reports.
"""

import re
from dataclasses import dataclass, field
from hashlib import sha256

from inferlog.api_client import Chunk

_SCRIPTED = re.compile(r"^[0-9a-f]{6}\.\d+ ")


@dataclass(slots=True)
class StreamCheck:
    """Fed with every chunk; then `lost()` and `repeated()` count tokens."""

    prompt: str
    output_tokens: int
    text: list[str] = field(default_factory=list)
    position: int = 0
    steps_back: int = 0
    finish_reason: str | None = None
    usage_tokens: int | None = None

    def feed(self, chunk: Chunk) -> None:
        """Takes the next chunk."""
        if chunk.text:
            if chunk.position is not None and chunk.position <= self.position:
                self.steps_back += max(1, self.position - chunk.position)
            self.text.append(chunk.text)
        if chunk.position is not None:
            self.position = max(self.position, chunk.position)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        if chunk.usage:
            self.usage_tokens = int(chunk.usage.get("completion_tokens", 0))

    def tokens(self) -> int:
        """How many tokens the answer has, as it says itself."""
        return self.usage_tokens if self.usage_tokens is not None else self.position

    def lost(self) -> int:
        """Tokens that should be there and are not; an answer without its end lost at least one."""
        if self.is_scripted():
            seen = set(self._numbers())
            missing = sum(1 for number in range(self.output_tokens) if number not in seen)
        else:
            missing = abs(self.tokens() - self.position)
        return max(missing, 0 if self.finish_reason else 1)

    def repeated(self) -> int:
        """Tokens that came more than once, or in the wrong place, or belong to another prompt."""
        if not self.is_scripted():
            return self.steps_back
        numbers = self._numbers()
        # in order from 0, each once: whatever is not at its own place is one too many
        return sum(1 for place, number in enumerate(numbers) if number != place)

    def is_scripted(self) -> bool:
        """Whether the scripted engine wrote it."""
        return bool(self.text) and _SCRIPTED.match("".join(self.text)) is not None

    def _numbers(self) -> list[int]:
        """The numbers of this prompt's tokens; -1 for a token of another prompt."""
        mine = sha256(self.prompt.encode()).hexdigest()[:6]
        numbers = []
        for token in "".join(self.text).split():
            prefix, _, number = token.partition(".")
            numbers.append(int(number) if prefix == mine and number.isdecimal() else -1)
        return numbers
