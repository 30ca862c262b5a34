"""The table of parameters in the docs says what the code does."""

import re
from pathlib import Path

from producer_api.parameters import (
    REFUSED,
    RESPONSES_REFUSED,
    RESPONSES_WITHOUT_EFFECT,
    RUN,
    WITHOUT_EFFECT,
)

DOC = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"
ROW = re.compile(r"\| `(\w+)` \| ([^|]+) \| ([^|]+) \|")
CHAT, COMPLETIONS = RUN["/v1/chat/completions"], RUN["/v1/completions"]
RESPONSES = RUN["/v1/responses"]


def rows(part: int) -> dict[str, tuple[str, str]]:
    """What a table of the docs says of each parameter: the verdict, and the note."""
    text = DOC.read_text().split("## Responses")[part]
    found = [ROW.fullmatch(it) for it in text.splitlines() if it.startswith("| `")]
    assert None not in found
    return {it[1]: (it[2], it[3]) for it in found if it}


def verdict(name: str) -> str:
    if name in REFUSED:
        return "refused"
    if name in WITHOUT_EFFECT:
        return "accepted without effect"
    if name in CHAT and name in COMPLETIONS:
        return "run"
    return "run (chat)" if name in CHAT else "run (completions)"


def test_every_parameter_stands_in_the_table_with_its_verdict() -> None:
    names = CHAT | COMPLETIONS | WITHOUT_EFFECT | set(REFUSED)
    assert {name: said for name, (said, _) in rows(0).items()} == {n: verdict(n) for n in names}


def test_every_parameter_of_responses_stands_in_a_table_of_their_own() -> None:
    verdicts = {
        **dict.fromkeys(RESPONSES, "run"),
        **dict.fromkeys(RESPONSES_WITHOUT_EFFECT, "accepted without effect"),
        **dict.fromkeys(RESPONSES_REFUSED, "refused"),
    }
    assert {name: said for name, (said, _) in rows(1).items()} == verdicts


def test_reasons_are_those_that_clients_are_told() -> None:
    for part, reasons in enumerate((REFUSED, RESPONSES_REFUSED)):
        said = {name: note for name, (_, note) in rows(part).items()}
        assert {name: said[name] for name in reasons} == dict(reasons)
