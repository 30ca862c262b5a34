"""Every metric, declared once. A `Metrics` belongs to one process (or one test), with its registry.

Names carry their units; labels have few values (a tier, a reason from a fixed list), never an id.
"""

import asyncio
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

_MS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_COUNTS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 131072.0)

LAG_INTERVAL_SECONDS = 0.1


class Metrics:
    """The whole table. Which process fills which part is said at each group."""

    def __init__(self, registry: CollectorRegistry | None = None, *, process: bool = False) -> None:
        """With `process`, memory, CPU and garbage collection of the process are told as well."""
        self.registry = registry if registry is not None else CollectorRegistry()
        if process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)
        self._declare_process()
        self._declare_api()
        self._declare_worker()
        self._declare_ownership()
        self._declare_log()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"inferlog_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"inferlog_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _WAITS
    ) -> Histogram:
        return Histogram(f"inferlog_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _declare_process(self) -> None:
        """Every process."""
        self.build_info = self._gauge(
            "build_info", "1, for the version it names", "version", "process"
        )
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "How much too late the event loop woke a timer", buckets=_MS
        )
        self.client_rebuilds = self._counter(
            "client_rebuilds",
            "Clients of the log given up: died, stuck, in_doubt, no_answer",
            "client",
            "reason",
        )

    def _declare_api(self) -> None:
        """API replicas."""
        self.accepted = self._counter(
            "requests_accepted", "Requests published and acknowledged", "tier", "endpoint"
        )
        self.refused = self._counter(
            "requests_refused", "Requests refused before they were published", "code"
        )
        self.http_responses = self._counter(
            "http_responses",
            "Answers, by the route's pattern (none: before one was found)",
            "route",
            "status",
        )
        self.accept = self._histogram(
            "accept_seconds", "From the request's last byte to the acknowledged record", buckets=_MS
        )
        self.claims = self._counter(
            "claims",
            "Idempotency keys: won, lost, replayed, attached, conflict, in_progress, taken_over, gone, out_of_view",
            "outcome",
        )
        self.claims_live = self._gauge("claims_live", "Claims whose life still runs")
        self.open_streams = self._gauge(
            "open_streams", "Requests whose answer a client is waiting for or reading now"
        )
        self.open_requests = self._gauge("open_requests", "HTTP requests under way now")
        self.stalled = self._counter(
            "connections_stalled",
            "Connections ended because their client took nothing for too long",
        )
        self.mailbox_drops = self._counter(
            "mailbox_drops", "Readers too slow for their mailbox: they went on from the log"
        )
        self.log_scans = self._counter(
            "log_scans",
            "Answers read back from the log: status, follow (no mailbox), mailbox (lost it)",
            "reason",
        )
        self.log_scans_running = self._gauge(
            "log_scans_running", "Readers of the log that those answers share now"
        )
        self.shared_scans = self._counter("shared_scans", "Such readers begun")
        self.scan_members = self._counter(
            "scan_members", "Answers that began, joined or were merged into a shared reader", "how"
        )
        self._declare_results()
        self.replies_behind_records = self._gauge(
            "replies_behind_records", "Reply records not yet read, over all home partitions"
        )
        self.cancels = self._counter(
            "cancels", "Requests cancelled: client (asked for), disconnect (it left)", "source"
        )

    def _declare_results(self) -> None:
        """API replicas: finished answers kept in memory, and what browsers are let in with."""
        self.result_cache = self._counter(
            "result_cache_lookups", "Answers looked up in memory: hit, miss", "outcome"
        )
        self.result_cache_bytes = self._gauge(
            "result_cache_bytes", "About the memory of answers kept, or on their way"
        )
        self.result_cache_evictions = self._counter(
            "result_cache_evictions", "Answers forgotten, for their age or for room", "reason"
        )
        self.deletions = self._counter("deletions", "Requests deleted by their clients")
        self.tickets = self._counter(
            "tickets", "Browser tickets: issued, redeemed, and those refused", "outcome"
        )

    def _declare_worker(self) -> None:
        """Workers; the API fills the three times as its clients see them."""
        self.queue_depth = self._gauge(
            "queue_depth_requests", "Request records not yet completed (lag), by tier", "tier"
        )
        self.oldest_age = self._gauge(
            "queue_oldest_age_seconds", "Age of the oldest request that has not started", "tier"
        )
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "From the append of a request to its start in the engine", "tier"
        )
        self.ttft = self._histogram(
            "time_to_first_token_seconds",
            "Worker: from the append of a request to its first token; API: from its arrival",
            "tier",
        )
        self.per_token = self._histogram(
            "time_per_output_token_seconds",
            "Mean time between tokens after the first, one observation a request",
            "tier",
            buckets=_TOKEN,
        )
        self.end_to_end = self._histogram(
            "end_to_end_seconds",
            "Worker: from the append of a request to its terminal; API: from its arrival",
            "tier",
        )
        self.ended = self._counter(
            "requests_ended", "Requests by how they ended", "tier", "outcome"
        )
        self.tokens_in = self._counter("tokens_in", "Prompt tokens of finished requests", "tier")
        self.tokens_cached = self._counter(
            "tokens_cached", "Those found in the prefix cache", "tier"
        )
        self.tokens_out = self._counter("tokens_out", "Tokens generated", "tier")
        self.prompt_tokens = self._histogram(
            "prompt_tokens", "Prompt tokens per request", buckets=_COUNTS
        )
        self.output_tokens = self._histogram(
            "output_tokens", "Generated tokens per request", buckets=_COUNTS
        )
        self.slots = self._gauge("engine_slots", "Requests the engine runs at once, at most")
        self.running = self._gauge("requests_running", "Requests in the engine now")
        self.waiting = self._gauge(
            "requests_waiting", "Requests picked up and not yet in the engine"
        )
        self.step = self._histogram(
            "engine_step_seconds", "How long a step of the engine takes", buckets=_TOKEN
        )
        self.engine_restarts = self._counter(
            "engine_restarts", "Engines that died and were replaced"
        )
        self.deadlines = self._counter(
            "deadlines", "Requests that ran into a deadline: start, first_token, total", "kind"
        )
        self.dead_letters = self._counter("dead_letters", "Records parked", "reason")

    def _declare_ownership(self) -> None:
        """Workers: who owns what."""
        self.rebalances = self._counter("rebalances", "New assignments of the group")
        self.partitions_owned = self._gauge("partitions_owned", "Request partitions owned", "tier")
        self.takeover = self._histogram(
            "takeover_seconds",
            "From the moment partitions were wanted to reading: fences, fold of suspects",
            buckets=_WAITS,
        )
        self.fences = self._counter("fences", "Epochs begun, each with its fences")
        self.epochs_ended = self._counter(
            "epochs_ended", "Epochs ended before their time", "reason"
        )
        self.suspects = self._counter(
            "suspects", "Requests an earlier owner may have run: done, resume, run", "verdict"
        )
        self.suspects_died = self._counter(
            "suspects_died",
            "Suspects whose start was the death of worker or engine, by deaths in a row",
            "deaths",
        )
        self.run_alone = self._counter(
            "requests_run_alone", "Starts of requests that may be poison, with nothing beside them"
        )
        self.resumed = self._counter(
            "requests_resumed",
            "Requests that entered the engine mid-answer, where another run had left them",
        )
        self.interrupted = self._counter(
            "requests_interrupted", "Requests that could not be continued faithfully"
        )
        self.late_copies = self._counter(
            "late_copies",
            "Records appended long after their id was made: run, done, expired, unjudged",
            "outcome",
        )
        self.log_faults = self._counter(
            "log_faults", "Records, reads and takeovers that went wrong, by kind", "kind"
        )
        self.commits = self._counter("commits", "Commits: accepted, refused, failed", "outcome")

    def _declare_log(self) -> None:
        """API and workers: the log as they meet it."""
        self.publish = self._histogram(
            "publish_seconds", "From handing a record over to its ack", "topic", buckets=_MS
        )
        self.publish_failures = self._counter(
            "publish_failures", "Records refused, or whose outcome is unknown", "topic", "outcome"
        )
        self.fetch = self._histogram(
            "fetch_seconds",
            "From the append of a record to its arrival here; of requests: with the wait for room",
            "topic",
            buckets=_MS,
        )
        self.records_read = self._counter(
            "records_read", "Records read of replies (API) and request topics (workers)", "topic"
        )


async def watch_loop_lag(
    observe: Callable[[float], None], interval_seconds: float = LAG_INTERVAL_SECONDS
) -> None:
    """Sleeps again and again, for ever, and reports how much too late it was woken, in seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + interval_seconds
        await asyncio.sleep(interval_seconds)
        observe(max(0.0, loop.time() - due_s))
