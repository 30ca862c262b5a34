"""Every metric, declared once. Names carry their unit; buckets fit what they measure."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one process, in a registry of their own, so that tests do not clash."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"inferlog_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"inferlog_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            full = f"inferlog_{name}_seconds"
            return Histogram(full, text, labels, buckets=buckets, registry=registry)

        # the API
        self.accepted = counter("requests_accepted_total", "Requests durably accepted", "tier")
        self.refused = counter("requests_refused_total", "Requests refused, by error code", "code")
        self.claims = counter("claims_total", "Idempotency claims, by outcome", "outcome")
        self.open_streams = gauge("open_streams", "Answers that clients wait for")
        self.mailbox_drops = counter(
            "mailbox_drops_total", "Mailboxes dropped: reads on from the log"
        )
        self.end_to_end = seconds("end_to_end", "Accepted to answered", _LONG_SECONDS, "tier")
        # the worker
        self.queue_depth = gauge("queue_depth", "Records not yet committed (lag)", "tier")
        self.oldest_age = gauge(
            "queue_oldest_age_seconds", "Age of the oldest waiting request", "tier"
        )
        self.queue_wait = seconds("queue_wait", "Append to first start", _LONG_SECONDS, "tier")
        self.ttft = seconds("time_to_first_token", "Append to first token", _LONG_SECONDS, "tier")
        self.per_token = seconds("time_per_output_token", "After the first", _FAST_SECONDS, "tier")
        self.tokens_in = counter(
            "prompt_tokens_total", "Prompt tokens of finished requests", "tier"
        )
        self.tokens_out = counter("output_tokens_total", "Tokens published", "tier")
        self.ended = counter("requests_ended_total", "Terminals, by kind", "tier", "outcome")
        self.running = gauge("running_requests", "Engine slots in use")
        self.waiting = gauge("waiting_requests", "Picked up, not started")
        self.slots = gauge("engine_slots", "Engine slots")
        self.step = seconds("engine_step", "The latest engine step", _FAST_SECONDS)
        self.suspects = counter(
            "suspects_total", "Requests met at a takeover, by verdict", "verdict"
        )
        self.dead_letters = counter("dead_letters_total", "Records parked, by reason", "reason")
        # the log
        self.publish = seconds("publish", "Append to ack", _FAST_SECONDS, "topic")
        self.rebalances = counter("rebalances_total", "Assignments taken")
        self.commits = counter("commits_total", "Commits, by outcome", "outcome")
        self.epochs_ended = counter("epochs_ended_total", "Ownership dropped, by reason", "reason")
        self.log_faults = counter("log_faults_total", "Records or reads that went wrong", "kind")

    def serve(self, host: str, port: int) -> int:
        """Serves `/metrics`; port 0 takes a free one. Returns the port. Raises OSError if taken."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)
