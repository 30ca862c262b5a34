"""Submitting under an Idempotency-Key: one visible execution per key, the same answer for all."""

from dataclasses import replace
from typing import Protocol

from core.errors import Refusal
from core.idempotency import Judged, claim_life_seconds
from core.limits import Limits
from producer_api.claims import Claims
from producer_api.placement import Placement, pool_of
from producer_api.publisher import request_value
from producer_api.retrieval import Deleted
from producer_api.streams import ReplyStream
from producer_api.submission import Draft, IdempotencyKey, Snapshot, Submission, lowered
from runtime.clock import BrokerClock
from runtime.metrics import Metrics
from schemas.ids import parse_request_id
from schemas.operations import Claim
from topics.ports import Partition, parse_partition


class RequestPath(Protocol):
    """What of the pipeline a key is taken through."""

    @property
    def limits(self) -> Limits: ...
    async def publish(
        self,
        draft: Draft,
        request_id: str,
        place: tuple[Partition, bytes],
        traceparent: str | None,
        until_s: float,
        *,
        keyed: bool,
    ) -> Submission: ...
    async def open(self, tenant: str, request_id: str) -> ReplyStream: ...
    async def status(self, tenant: str, request_id: str) -> Snapshot: ...


class KeyedSubmitter:
    """Claims the key and publishes, or finds the request that holds it."""

    def __init__(
        self,
        claims: Claims,
        placement: Placement,
        path: RequestPath,
        clock: BrokerClock,
        metrics: Metrics,
    ) -> None:
        self._claims = claims
        self._placement = placement
        self._path = path
        self._clock = clock
        self._metrics = metrics

    async def submit(
        self, draft: Draft, wanted: IdempotencyKey, traceparent: str | None, until_s: float
    ) -> Submission:
        """Raises Refusal: those of publishing, of `Claims.claim`, and the conflicts of a key.

        What is appended is appended by `until_s` (the loop's time).
        """
        key = (draft.tenant, wanted.key)
        live = self._claims.book.live(*key, self._clock.now_ms())
        if live is None:
            async with self._claims.turn(key, until_s):
                # who had the turn before us may have claimed it
                live = self._claims.book.live(*key, self._clock.now_ms())
                if live is None:
                    won, live = await self._claim(draft, wanted, traceparent, until_s)
                    if won is not None:
                        return won
        if live is None or not live.won:
            self._metrics.claims.labels("out_of_view").inc()
            raise _gone()
        if live.claim.fingerprint != wanted.fingerprint:
            self._metrics.claims.labels("conflict").inc()
            raise Refusal(
                "idempotency_key_reused",
                "This Idempotency-Key was used with another payload: use a new key.",
            )
        return await self._join(draft, wanted, live, traceparent, until_s)

    async def _claim(
        self, draft: Draft, wanted: IdempotencyKey, traceparent: str | None, until_s: float
    ) -> tuple[Submission | None, Judged | None]:
        """Won: the request is published. Lost: who won instead, None if that is out of view."""
        place = await self._placement.place(draft, until_s)
        request_id = self._placement.new_id()
        # what no record can hold must not take the key
        request_value(draft.request(request_id, pool_of(place[0].topic)))
        claim = Claim(
            tenant=draft.tenant,
            key=wanted.key,
            fingerprint=wanted.fingerprint,
            request_id=request_id,
            q=str(place[0]),
            life_seconds=claim_life_seconds(self._path.limits, draft.deadlines.total_seconds),
        )
        judged = await self._claims.claim(claim, until_s)
        if not judged.won:
            self._metrics.claims.labels("lost").inc()
            return None, self._claims.book.winner(draft.tenant, wanted.key)
        self._metrics.claims.labels("won").inc()
        publish = self._path.publish(draft, request_id, place, traceparent, until_s, keyed=True)
        return await publish, judged

    async def _join(
        self,
        draft: Draft,
        wanted: IdempotencyKey,
        live: Judged,
        traceparent: str | None,
        until_s: float,
    ) -> Submission:
        request_id = live.claim.request_id
        snapshot = await self._snapshot(draft.tenant, request_id)
        if snapshot is None:
            async with self._claims.turn((draft.tenant, wanted.key), until_s):
                # who had the turn before us may have published it
                snapshot = await self._snapshot(draft.tenant, request_id)
                if snapshot is None:
                    return await self._take_over(draft, live, traceparent, until_s)
        if snapshot.state not in ("queued", "in_progress"):
            self._metrics.claims.labels("replayed").inc()
            stream = await self._path.open(draft.tenant, request_id)
            return Submission(request_id, "replayed", stream)
        if wanted.attach:
            self._metrics.claims.labels("attached").inc()
            stream = await self._path.open(draft.tenant, request_id)
            return Submission(request_id, "attached", stream)
        raise self._in_progress()

    async def _snapshot(self, tenant: str, request_id: str) -> Snapshot | None:
        """None: the log says nothing of it."""
        try:
            return await self._path.status(tenant, request_id)
        except Deleted:
            raise _gone() from None
        except Refusal as refusal:
            if refusal.code == "not_found":
                return None
            raise

    async def _take_over(
        self, draft: Draft, live: Judged, traceparent: str | None, until_s: float
    ) -> Submission:
        """A claim without a request: its replica may have died between the two.

        A retry may have more time than the first try had; its run must not outlast the claim's life,
        or the key would be free while it runs.
        """
        limits, now_ms = self._path.limits, self._clock.now_ms()
        request_id = live.claim.request_id
        longest_s = (live.claim.life_seconds - limits.deadline_margin_seconds) / 2
        draft = replace(draft, deadlines=lowered(draft.deadlines, longest_s))
        claimed_s = (now_ms - live.append_ms) / 1000
        age_s = (now_ms - parse_request_id(request_id).time_ms) / 1000
        if claimed_s <= limits.claim_lease_seconds:
            raise self._in_progress()
        if age_s < draft.deadlines.total_seconds:
            self._metrics.claims.labels("taken_over").inc()
            place = (parse_partition(live.claim.q), draft.tenant.encode())
            return await self._path.publish(
                draft, request_id, place, traceparent, until_s, keyed=True
            )
        # no worker would accept its record any more; one that was accepted may still run
        if age_s <= 2 * limits.total_seconds + limits.deadline_margin_seconds:
            raise self._in_progress()
        self._metrics.claims.labels("gone").inc()
        raise _gone()

    def _in_progress(self) -> Refusal:
        self._metrics.claims.labels("in_progress").inc()
        return Refusal(
            "idempotency_in_progress",
            "A request with this Idempotency-Key is running. Retry later, or send "
            "`Prefer: inferlog=attach` to join it.",
            retry_after_seconds=1,
        )


def _gone() -> Refusal:
    return Refusal("result_expired", "The answer to this key is no longer kept.")
