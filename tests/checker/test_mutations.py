"""What each mutation of the product would leave behind, written by hand: the checker turns red.

The names are those of the protocol's random-interleaving model, then those of the product alone. That
mutated products leave such histories is shown where they run: `tests/simulation` (each of them, by
pinned seeds) and `tests/faults/test_mutated.py` (real processes).
"""

from collections.abc import Callable

import pytest

from schemas.operations import Claim, Control
from schemas.replies import Cancelled, ErrorInfo, Failed
from tests.checker.handmade import (
    ID,
    REQUEST,
    TOPIC,
    Log,
    Q,
    attempt,
    begun,
    finished,
    opened,
    request,
    said,
    seen_token,
    token,
)
from tests.checker.history import Seen
from tests.checker.rules import check


def broken_off() -> Log:
    """One token, then its worker falls silent."""
    log = opened()
    log.say(begun(0, 0), token(0, 0))
    return log


def nofence() -> Log:
    """The new owner writes none: the old one is heard while it speaks."""
    log = broken_off()
    log.acquire("b")
    log.say(token(0, 1), finished(0))
    log.say(begun(1, 1), token(1, 1), finished(1))
    return log


def noscan() -> Log:
    """The new owner begins at the beginning."""
    log = broken_off()
    log.take(1, "b")
    log.say(begun(1, 0), token(1, 0), token(1, 1), finished(1))
    return log


def zombie_behind_a_fence() -> Log:
    log = broken_off()
    log.take(1, "b")
    log.say(token(0, 1, "of a zombie"))
    log.say(begun(1, 1), token(1, 1), finished(1))
    return log


def noepoch() -> Log:
    """A tail reader hears the zombie."""
    log = zombie_behind_a_fence()
    seen = Seen(0, [seen_token(0), seen_token(1, "of a zombie")])
    log.history.attempts.append(attempt(0, "submit", seen))
    return log


def nocheck() -> Log:
    """A late zombie's fence made the terminal invisible, and its offset was committed."""
    log = broken_off()
    log.take(1, "b")
    log.take(2, "a")
    log.say(begun(1, 1), token(1, 1), finished(1))
    log.commit(1)
    return log


def earlycommit() -> Log:
    """Begun counts as done."""
    log = broken_off()
    log.commit(1)
    log.say(token(0, 1), finished(0))
    return log


def nolate() -> Log:
    """A reader that starts late knows no epochs: over HTTP, it reads what the zombie said."""
    log = zombie_behind_a_fence()
    seen = Seen(1, position=2, text="of a zombie")
    log.history.attempts.append(attempt(0, "resume", seen))
    return log


def half_b() -> Log:
    """A late reader passes over an A without its B: it is told of an end that nobody else sees."""
    log = broken_off()
    log.take(1, "b")
    log.say(token(0, 1), finished(0))
    seen = Seen(0, [seen_token(0), seen_token(1)], "finished", (2,))
    log.history.attempts.append(attempt(0, "resume", seen))
    return log


def nobind() -> Log:
    """A reader takes the end of the other copy for the end of this one, which was cancelled."""
    log = broken_off()
    log.put(TOPIC, REQUEST)
    log.say(begun(0, 0, offset=1), token(0, 1, offset=1), finished(0, offset=1))
    log.put("control", Control(kind="cancel", tenant="ann", request_id=ID))
    log.say(Cancelled(**said(0, 0), counts=(1,)))  # type: ignore[arg-type]
    seen = Seen(0, [seen_token(0)], "finished", (2,))
    log.history.attempts.append(attempt(0, "submit", seen))
    return log


def nocount() -> Log:
    """A terminal of two tokens is taken where one was said."""
    log = broken_off()
    log.say(finished(0))
    seen = Seen(0, [seen_token(0)], "finished", (2,))
    log.history.attempts.append(attempt(0, "submit", seen))
    return log


def noabandon() -> Log:
    """A token was lost on its way; its epoch went on to the end and the commit."""
    log = broken_off()
    log.say(finished(0))
    log.commit(1)
    return log


def noincarnation() -> Log:
    """A process that was started anew under the old name believes the epoch of the last one."""
    log = broken_off()
    log.say(begun(0, 0, worker="w0, started anew"), token(0, 1), finished(0))
    return log


def dropmem() -> Log:
    """The work was dropped and the position kept: the next request is committed over it."""
    log = broken_off()
    log.put(TOPIC, request(2))
    log.commit(1)
    return log


def keepdoubt() -> Log:
    """Got back what it had lost, and goes on from a token that never arrived."""
    log = broken_off()
    log.take(1, "a")
    log.say(begun(1, 2), finished(1))
    return log


def pubduring() -> Log:
    """Went on under its old epoch between its A and its fence, and then from what it knew before."""
    log = broken_off()
    log.acquire("a")
    log.say(token(0, 1))
    log.fence(1)
    log.say(begun(1, 1), finished(1))
    return log


def caplow() -> Log:
    """Begins an offset that a takeover would not look for."""
    log = broken_off()
    log.history.span_offsets = 2
    log.say(begun(0, 0, offset=2))
    return log


def attachspoken() -> Log:
    """Completed with the first copy, though it is this one that is visible."""
    log = opened()
    log.put(TOPIC, REQUEST)
    log.say(begun(0, 0, offset=1), token(0, 0, offset=1))
    log.take(1, "b")
    log.say(begun(1, 0), token(1, 0), token(1, 1), finished(1))
    log.commit(2)
    return log


def metarunning() -> Log:
    """The marks cover only what still runs: what ended and is not committed is forgotten."""
    log = opened()
    log.put(TOPIC, request(2))
    log.say(begun(0, 0), token(0, 0), token(0, 1), finished(0))
    log.commit(0, "1:3")
    return log


def claim(log: Log, request_id: str, key: str = "k") -> None:
    fields = {"tenant": "ann", "key": key, "fingerprint": "f", "life_seconds": 2.0}
    log.put("claims", Claim(request_id=request_id, q=Q, **fields))  # type: ignore[arg-type]


def claim_order_ignored() -> Log:
    """Two clients with one key at once, and both requests run."""
    log = Log()
    for number in (1, 2):
        claim(log, request(number).id)
        log.put(TOPIC, request(number))
    return log


def lost_claim_revived() -> Log:
    """The winner's life has ended; the loser of then is published now."""
    log = Log()
    claim(log, request(1).id)
    claim(log, request(2).id)
    log.put(TOPIC, request(1))
    log.later_ms = 3_000
    log.put(TOPIC, request(2))
    return log


def resume_off_by_one() -> Log:
    """Two tokens are visible, and the next worker goes on after one."""
    log = opened()
    log.say(begun(0, 0), token(0, 0), token(0, 1))
    log.take(1, "b")
    log.say(begun(1, 1), token(1, 1), finished(1))
    return log


def cancel_forgotten_on_takeover() -> Log:
    """Cancelled long before the second owner came, who goes on with it nevertheless."""
    log = broken_off()
    log.put("control", Control(kind="cancel", tenant="ann", request_id=ID))
    log.later_ms = 10_000
    log.take(1, "b")
    log.later_ms = 20_000
    log.say(begun(1, 1), token(1, 1), finished(1))
    return log


def poison_parks_its_neighbours() -> Log:
    """An innocent request that ran beside a poison is parked with it."""
    log = broken_off()
    log.history.poison = ("it kills",)
    log.park("poison")
    error = ErrorInfo(code="poison", message="")
    log.say(Failed(**said(0, 0), counts=(1,), error=error))  # type: ignore[arg-type]
    return log


LEAVES: dict[str, tuple[str, str, Callable[[], Log]]] = {
    "nofence": ("I5", "no fence of its own", nofence),
    "noscan": ("I2", "goes on from (0,), visible are {0: 1}", noscan),
    "noepoch": ("I5", "of a zombie", noepoch),
    "nocheck": ("I4", "was committed", nocheck),
    "earlycommit": ("I4", "was committed", earlycommit),
    "nolate": ("I2", "read 'of a zombie'", nolate),
    "noB": ("I5", "of a zombie", half_b),
    "nobind": ("I2", "was told finished, the log says cancelled", nobind),
    "nocount": ("I2", "was told finished, and nothing has ended", nocount),
    "noabandon": ("I4", "was committed", noabandon),
    "noincarnation": ("I5", "was spoken by ['w0', 'w0, started anew']", noincarnation),
    "dropmem": ("I4", "was committed", dropmem),
    "keepdoubt": ("I2", "goes on from (2,), visible are {0: 1}", keepdoubt),
    "pubduring": ("I2", "goes on from (1,), visible are {0: 2}", pubduring),
    "caplow": ("I7", "2 was begun when 0 was committed", caplow),
    "attachspoken": ("I4", "2 was committed, and at 1", attachspoken),
    "metarunning": ("I4", "says 3 for replies/0", metarunning),
    "claim order ignored": ("I3", "lost, and it was published", claim_order_ignored),
    "lost claim revived": ("I3", "lost, and it was published", lost_claim_revived),
    "resume off by one": ("I2", "goes on from (1,), visible are {0: 2}", resume_off_by_one),
    "cancel forgotten on takeover": (
        "I8",
        "begun later, goes on with it",
        cancel_forgotten_on_takeover,
    ),
    "poison parks its neighbours": (
        "I9",
        "parked as poison, and is none",
        poison_parks_its_neighbours,
    ),
}


@pytest.mark.parametrize("name", list(LEAVES))
def test_what_a_mutation_leaves_behind_is_told(name: str) -> None:
    rule, words, make = LEAVES[name]
    told = [it for it in check(make().history) if it.rule == rule and words in it.text]
    assert len(told) == 1
