"""Records that cannot be run: set aside as dead letters, with an answer where somebody waits."""

import logging
from collections.abc import Callable

from consumers.inference.accounts import Accounts
from consumers.inference.intake import Parked, Place
from consumers.inference.replies import ReplyWriter, Speech
from core.offsets import Handle
from schemas.replies import Failed
from topics.ports import Record

_log = logging.getLogger(__name__)


def after(acks: int, complete: Callable[[], None]) -> Callable[[], None]:
    """Returns what is to be called at each of `acks` acknowledgements; the last one completes."""
    open_acks = acks

    def acknowledged() -> None:
        nonlocal open_acks
        open_acks -= 1
        if not open_acks:
            complete()

    return acknowledged


def park(
    record: Record,
    parked: Parked,
    place: Place,
    handle: Handle,
    writer: ReplyWriter,
    accounts: Accounts,
) -> None:
    """A dead letter, and `Failed` for the client where the record says who that is.

    The offset is complete once all of it is acknowledged.
    """
    _log.warning(
        "%s offset %s parked: %s",
        place.q,
        place.offset,
        parked.reason,
        extra={"request_id": parked.request_id},
    )
    if not (
        parked.error and parked.request_id and parked.tenant and parked.reply_partition is not None
    ):
        accounts.dead_letter(record, parked, handle.complete)
        return
    acknowledged = after(2, handle.complete)
    writer.begin(handle, parked.reply_partition)
    speech = Speech()
    event = Failed(
        id=parked.request_id,
        tenant=parked.tenant,
        q=place.q,
        offset=place.offset,
        epoch=place.epoch,
        counts=(),
        error=parked.error,
    )
    writer.say(parked.reply_partition, speech, event)
    speech.when_silent(acknowledged)
    accounts.dead_letter(record, parked, acknowledged)
