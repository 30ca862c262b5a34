"""The worker's metrics, at the places where the worker knows the figure."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from consumers.inference.engine.ports import Engine
from core.scheduler import Scheduler
from core.work import Work
from runtime.metrics import Metrics
from schemas.replies import AnyEvent, AnyTerminal, Cancelled, Expired, Failed, Finished, Tokens
from schemas.requests import TIERS, Tier
from topics.ports import Record


class _OfTier:
    """The metrics of one tier, looked up once: some are touched for every request."""

    def __init__(self, metrics: Metrics, tier: Tier) -> None:
        self.queue_wait = metrics.queue_wait.labels(tier)
        self.ttft = metrics.ttft.labels(tier)
        self.per_token = metrics.per_token.labels(tier)
        self.end_to_end = metrics.end_to_end.labels(tier)
        self.tokens_in = metrics.tokens_in.labels(tier)
        self.tokens_cached = metrics.tokens_cached.labels(tier)
        self.tokens_out = metrics.tokens_out.labels(tier)
        self.partitions_owned = metrics.partitions_owned.labels(tier)


DEATHS_TOLD_MAX = 9
"""A label has few values, whatever `starts_max` is set to."""


class Measures:
    """Turns what happens into metrics.

    `age_seconds` says how long ago a record was appended, given its append time, by the broker's
    clock.
    """

    def __init__(self, metrics: Metrics, age_seconds: Callable[[int], float]) -> None:
        self._metrics = metrics
        self._age_seconds = age_seconds
        self._tiers = {tier: _OfTier(metrics, tier) for tier in TIERS}
        self._loop = asyncio.get_running_loop()

    def count(self, what: str, reason: str) -> None:
        """Counts what happened to a tier or a record."""
        metrics = self._metrics
        match what:
            case "rebalance":
                metrics.rebalances.inc()
            case "commit":
                metrics.commits.labels("accepted").inc()
            case "commit_refused":
                metrics.commits.labels("refused").inc()
            case "commit_failed":
                metrics.commits.labels("failed").inc()
            case "epoch_ended":
                metrics.epochs_ended.labels(reason).inc()
            case "dead_letter":
                metrics.dead_letters.labels(reason).inc()
            case "suspect":
                metrics.suspects.labels(reason).inc()
            case "late_copy":
                metrics.late_copies.labels(reason).inc()
            case _:
                metrics.log_faults.labels(what).inc()

    def took_over(self, seconds: float) -> None:
        """Partitions are owned under a new epoch, `seconds` after they were wanted."""
        self._metrics.fences.inc()
        self._metrics.takeover.observe(seconds)

    def read(self, records: Sequence[Record]) -> None:
        """Records of one request topic as they were read, in one go."""
        metrics, topic = self._metrics, records[0].topic
        metrics.records_read.labels(topic).inc(len(records))
        metrics.fetch.labels(topic).observe(self._age_seconds(records[-1].time_ms))

    def suspect(self, work: Work) -> None:
        """A request met at a takeover that goes on or runs anew."""
        self._metrics.suspects.labels("resume" if work.resume else "run").inc()

    def deaths(self, work: Work) -> None:
        """A suspect whose latest start the log counts as a death."""
        if work.starts:
            self._metrics.suspects_died.labels(str(min(work.starts, DEATHS_TOLD_MAX))).inc()

    def started(self, work: Work, *, alone: bool = False) -> None:
        """A request enters the engine now."""
        if alone:
            self._metrics.run_alone.inc()
        if work.resume:
            self._metrics.resumed.inc()
        else:
            wait_s = self._age_seconds(work.append_ms)
            self._tiers[work.request.tier].queue_wait.observe(wait_s)

    def tokens(self, event: AnyEvent) -> int:
        """How many tokens an event publishes."""
        return len(event.token_ids) if isinstance(event, Tokens) else 0

    def ended(self, work: Work, event: AnyTerminal, prompt_tokens: int, cached_tokens: int) -> None:
        """A terminal is said now."""
        metrics, tier = self._metrics, work.request.tier
        of_tier = self._tiers[tier]
        outcome = "failed"
        if isinstance(event, Finished):
            outcome = "finished"
            metrics.prompt_tokens.observe(prompt_tokens)
            metrics.output_tokens.observe(sum(event.counts))
        elif isinstance(event, Cancelled):
            outcome = "cancelled"
        elif isinstance(event, Expired):
            outcome = "expired"
            metrics.deadlines.labels(event.deadline).inc()
        elif isinstance(event, Failed) and event.error.code == "interrupted":
            metrics.interrupted.inc()
        metrics.ended.labels(tier, outcome).inc()
        of_tier.tokens_in.inc(prompt_tokens)
        of_tier.tokens_cached.inc(cached_tokens)
        fresh = sum(event.counts) - sum(len(choice.token_ids) for choice in work.resume)
        of_tier.tokens_out.inc(max(0, fresh))
        age_s = self._age_seconds(work.append_ms)
        of_tier.end_to_end.observe(age_s)
        if work.first_token_s is None or work.last_token_s is None:
            return
        if not work.resume:
            since_first_s = self._loop.time() - work.first_token_s
            of_tier.ttft.observe(max(0.0, age_s - since_first_s))
        if fresh > 1:
            per_token_s = (work.last_token_s - work.first_token_s) / (fresh - 1)
            of_tier.per_token.observe(max(0.0, per_token_s))

    def gauges(self, scheduler: Scheduler, engine: Engine, owned: Mapping[Tier, int]) -> None:
        """What is looked at now and then; `owned`: how many request partitions of each tier."""
        metrics = self._metrics
        metrics.running.set(scheduler.running)
        metrics.waiting.set(scheduler.waiting())
        metrics.slots.set(scheduler.slots)
        for tier, count in owned.items():
            self._tiers[tier].partitions_owned.set(count)
        step_s = engine.step_seconds()
        if step_s is not None:
            metrics.step.observe(step_s)
