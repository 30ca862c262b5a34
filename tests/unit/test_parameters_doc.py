"""The table of parameters in the docs says what the code does."""

import re
from pathlib import Path

from producer_api.parameters import REFUSED, RUN, WITHOUT_EFFECT

DOC = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"
ROW = re.compile(r"\| `(\w+)` \| ([^|]+) \| ([^|]+) \|")
CHAT, COMPLETIONS = RUN["/v1/chat/completions"], RUN["/v1/completions"]


def rows() -> dict[str, tuple[str, str]]:
    """What the docs say of each parameter: the verdict, and the note."""
    found = [ROW.fullmatch(it) for it in DOC.read_text().splitlines() if it.startswith("| `")]
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
    assert {name: said for name, (said, _) in rows().items()} == {n: verdict(n) for n in names}


def test_reasons_are_those_that_clients_are_told() -> None:
    said = {name: note for name, (_, note) in rows().items()}
    assert {name: said[name] for name in REFUSED} == dict(REFUSED)
