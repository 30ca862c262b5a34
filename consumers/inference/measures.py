"""The worker's metrics, at the places where the worker knows the figure."""

from consumers.inference.engine.ports import Engine
from core.scheduler import Scheduler
from core.work import Work
from runtime.metrics import Metrics
from schemas.replies import AnyEvent, AnyTerminal, Cancelled, Expired, Failed, Finished, Tokens


class Measures:
    """Turns what happens into metrics; `age_seconds` of a record comes from the broker's clock."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def count(self, what: str, reason: str) -> None:
        """Counts what happened to a tier or a record."""
        it = self._metrics
        match what:
            case "rebalance":
                it.rebalances.inc()
            case "commit":
                it.commits.labels("accepted").inc()
            case "commit_refused":
                it.commits.labels("refused").inc()
            case "commit_failed":
                it.commits.labels("failed").inc()
            case "epoch_ended":
                it.epochs_ended.labels(reason).inc()
            case "dead_letter":
                it.dead_letters.labels(reason).inc()
            case "suspect":
                it.suspects.labels(reason).inc()
            case _:
                it.log_faults.labels(what).inc()

    def suspect(self, work: Work) -> None:
        """A request met at a takeover that goes on or runs anew."""
        self._metrics.suspects.labels("resume" if work.resume else "run").inc()
        if work.resume:
            self._metrics.resumed.inc()

    def started(self, work: Work) -> None:
        """A request enters the engine."""
        if work.started_s is not None:
            wait_s = max(0.0, work.started_s - work.arrived_s)
            self._metrics.queue_wait.labels(work.request.tier).observe(wait_s)

    def tokens(self, event: AnyEvent) -> int:
        """How many tokens an event publishes."""
        return len(event.token_ids) if isinstance(event, Tokens) else 0

    def ended(self, work: Work, event: AnyTerminal, prompt_tokens: int) -> None:
        """A terminal is said."""
        it, tier = self._metrics, work.request.tier
        outcome = "failed"
        if isinstance(event, Finished):
            outcome = "finished"
        elif isinstance(event, Cancelled):
            outcome = "cancelled"
        elif isinstance(event, Expired):
            outcome = "expired"
        it.ended.labels(tier, outcome).inc()
        if isinstance(event, Failed) and event.error.code == "interrupted":
            it.interrupted.inc()
        it.tokens_in.labels(tier).inc(prompt_tokens)
        fresh = sum(event.counts) - sum(len(choice.token_ids) for choice in work.resume)
        it.tokens_out.labels(tier).inc(max(0, fresh))
        if work.first_token_s is None or work.last_token_s is None:
            return
        it.ttft.labels(tier).observe(max(0.0, work.first_token_s - work.arrived_s))
        if fresh > 1:
            per_token_s = (work.last_token_s - work.first_token_s) / (fresh - 1)
            it.per_token.labels(tier).observe(max(0.0, per_token_s))

    def gauges(self, scheduler: Scheduler, engine: Engine) -> None:
        """What is looked at now and then."""
        it = self._metrics
        it.running.set(scheduler.running)
        it.waiting.set(scheduler.waiting())
        it.slots.set(scheduler.slots)
        step_s = engine.step_seconds()
        if step_s is not None:
            it.step.observe(step_s)
