"""What is written beside the answer: usage and dead letters; and how old a record is."""

from collections.abc import Callable

from consumers.inference.intake import Parked
from consumers.inference.ledger_writer import LedgerWriter
from core.work import Work
from schemas.codec import encode
from schemas.operations import DeadLetter, Outcome, Usage
from schemas.replies import AnyTerminal, Cancelled, Expired, Finished
from topics.catalogue import DEAD_LETTERS, USAGE
from topics.ports import Log, Record

DEAD_LETTER_VALUE_BYTES_MAX = 1024 * 1024
DEAD_LETTER_REST_BYTES_MAX = 64 * 1024
"""Of the key, and of all headers together. With them and a value, in base64 and escaped, a letter is still
a record that can be appended and decoded."""


class Accounts:
    """Usage and dead letters by way of a `LedgerWriter`; ages by the broker's clock."""

    def __init__(self, log: Log, ledger: LedgerWriter, broker_now_ms: Callable[[], float]) -> None:
        self._log = log
        self._ledger = ledger
        self._broker_now_ms = broker_now_ms

    async def start(self) -> None:
        """Learns the partition counts of the topics it writes to."""
        for topic in (USAGE, DEAD_LETTERS):
            await self._log.partition_count(topic)

    @property
    def full(self) -> bool:
        """True while so much is unacknowledged that nothing new should be taken."""
        return self._ledger.full

    def age_seconds(self, append_ms: int) -> float:
        """Seconds since a record was appended, by the broker's clock; never negative."""
        return max(0.0, (self._broker_now_ms() - append_ms) / 1000)

    def usage(
        self,
        work: Work,
        event: AnyTerminal,
        prompt_tokens: int,
        cached_tokens: int,
        on_acknowledged: Callable[[], None],
    ) -> None:
        """Says what a request took, once its terminal is known."""
        request = work.request
        age_s = self.age_seconds(work.append_ms)
        run_s = 0.0
        if work.started_s is not None:
            run_s = max(0.0, (work.last_token_s or work.started_s) - work.started_s)
        record = Usage(
            request_id=request.id,
            tenant=request.tenant,
            model=request.model,
            tier=request.tier,
            endpoint=request.endpoint,
            q=work.q,
            offset=work.offset,
            epoch=event.epoch,
            outcome=_outcome(event),
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=sum(event.counts),
            queue_seconds=round(max(0.0, age_s - run_s), 6),
            run_seconds=round(run_s, 6),
            engine_seconds=round(run_s, 6),
        )
        key = request.tenant.encode()
        partition = self._log.partition_of_key(USAGE, key)
        self._ledger.put(USAGE, partition, key, encode(record), on_acknowledged=on_acknowledged)

    def said_already(self, work: Work, terminal: AnyTerminal | None) -> None:
        """A request whose terminal is on the log (None: under another origin): usage may be missing."""
        if terminal is None:
            work.handle.complete()
            return
        work.counts = list(terminal.counts)
        prompt, cached = 0, 0
        if isinstance(terminal, Finished):
            prompt, cached = terminal.usage.prompt_tokens, terminal.usage.cached_tokens
        self.usage(work, terminal, prompt, cached, work.handle.complete)

    def dead_letter(
        self, record: Record, parked: Parked, on_acknowledged: Callable[[], None]
    ) -> None:
        """Parks a record with the reason. What lies beyond a bound is left out, and it says so."""
        value, key, headers = record.value, record.key, record.headers
        detail = parked.detail[:400]
        if key is not None and len(key) > DEAD_LETTER_REST_BYTES_MAX:
            detail, key = f"{detail} (without its key of {len(key)} bytes)", None
        if sum(len(name.encode()) + len(it) for name, it in headers) > DEAD_LETTER_REST_BYTES_MAX:
            detail, headers = f"{detail} (without its {len(headers)} headers)", ()
        if value is not None and len(value) > DEAD_LETTER_VALUE_BYTES_MAX:
            detail = f"{detail} (the first {DEAD_LETTER_VALUE_BYTES_MAX} of {len(value)} bytes)"
            value = value[:DEAD_LETTER_VALUE_BYTES_MAX]
        letter = DeadLetter(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            time_ms=record.time_ms,
            reason=parked.reason,
            detail=detail,
            key=key,
            value=value,
            headers=headers,
            request_id=parked.request_id,
            tenant=parked.tenant,
            starts=parked.starts,
        )
        name = parked.request_id or f"{record.topic}/{record.partition}/{record.offset}"
        partition = self._log.partition_of_key(DEAD_LETTERS, name.encode())
        self._ledger.put(
            DEAD_LETTERS, partition, name.encode(), encode(letter), on_acknowledged=on_acknowledged
        )


def _outcome(event: AnyTerminal) -> Outcome:
    if isinstance(event, Finished):
        return "finished"
    if isinstance(event, Cancelled):
        return "cancelled"
    return "expired" if isinstance(event, Expired) else "failed"
