"""One request in a scan of the log: its bounded box, and where to go on when it was full."""

from core.errors import InferlogError
from core.limits import Limits
from core.stream import Key, StreamState, Visible, is_terminal
from producer_api.mailbox import Mailbox

PAUSES_MAX = 100
"""How often a scan waits for a member to take what it was given, before it is parked."""


class Member:
    """One request as a scan tells it, in a bounded box; `skip` events were delivered before."""

    def __init__(self, key: Key, since_ms: int, limits: Limits, skip: int = 0) -> None:
        self.key = key
        self.since_ms = since_ms
        self.box = Mailbox(key, limits.mailbox_events, limits.mailbox_bytes)
        self.end: int | None = None
        self.at_end = False
        self.gap = False
        self.ended = False
        self.failure: InferlogError | None = None
        self.go_on_from: int | None = None
        """Parked: the offset to go on from, with `state`."""
        self.state: StreamState | None = None
        self.pauses = PAUSES_MAX
        self._skip = skip

    def put(self, event: Visible) -> None:
        """Takes the next visible event."""
        self.ended = is_terminal(event)
        if self._skip:
            self._skip -= 1
        else:
            self.box.add(event)

    def park(self, offset: int, state: StreamState | None) -> None:
        """Leaves the scan until what is in the box was taken; what comes after is unread till then."""
        self.go_on_from, self.state = offset, state
        self.at_end, self.end = False, None
        self.pauses = PAUSES_MAX

    def fail(self, error: InferlogError) -> None:
        """Tells whoever waits."""
        self.failure = error
        self.box.wake()
