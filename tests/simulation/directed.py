"""Schedules that lean on one spot: for faults that need a coincidence which plain seeds seldom bring."""

import random
from collections.abc import Callable
from dataclasses import replace

from msgspec import structs

from core.idempotency import claim_life_seconds
from schemas.requests import COMPLETIONS, Body, Deadlines
from tests.simulation.client import same_request
from tests.simulation.cluster import Weather
from tests.simulation.plan import Trouble, WorldPlan

Direct = Callable[[WorldPlan], None]
DIRECTED: dict[str, Direct] = {}


def directed(direct: Direct) -> Direct:
    """Registers it under its name, that of a mutation where there is one."""
    DIRECTED[direct.__name__] = direct
    return direct


def _spread(plan: WorldPlan, kind: str, count: int) -> None:
    draw = random.Random(f"{plan.seed}/{kind}")
    for _ in range(count):
        seconds = plan.session_s if "deaf" in kind else draw.choice([0.0, 0.1])
        plan.troubles.append(Trouble(draw.uniform(0.1, plan.chaos_s), kind, seconds))
    plan.troubles.sort(key=lambda it: it.at_s)


def _weather(plan: WorldPlan, weather: Weather) -> None:
    """As long as there is trouble; of what lasts longer than `replies` keeps nothing is promised."""
    longest_s = plan.limits.reply_retention_seconds / 2 if plan.trims else plan.chaos_s
    plan.troubles = [it for it in plan.troubles if it.kind != "weather"]
    plan.troubles.insert(0, Trouble(0.01, "weather", min(plan.chaos_s, longest_s), weather))


def _exact(plan: WorldPlan) -> None:
    """All clocks agree, and readers that start late start as late as they can."""
    plan.limits = replace(plan.limits, clock_skew_seconds=0.05)
    plan.offsets_ms = [0]


def _untrimmed(plan: WorldPlan) -> None:
    """Retention takes nothing while the run lasts."""
    plan.trims = False
    plan.limits = replace(plan.limits, reply_retention_seconds=120.0)


def _busy(plan: WorldPlan) -> None:
    """Everybody comes within the first second."""
    plan.clients = [
        replace(it, at_s=it.at_s / plan.chaos_s, cancels_after_s=None) for it in plan.clients
    ]


def _many_small_ones(plan: WorldPlan) -> None:
    """Short answers all the time, and nothing else that happens: commits follow one another."""
    patient = Deadlines(start_seconds=20.0, first_token_seconds=20.0, total_seconds=20.0)
    plan.trims, plan.batches, plan.troubles, plan.offsets_ms = False, [], [], [0]
    plan.limits = replace(
        plan.limits,
        start_seconds=20.0,
        first_token_seconds=20.0,
        total_seconds=20.0,
        publish_seconds=3.0,
        clock_skew_seconds=4.0,
        reply_retention_seconds=60.0,
        span_offsets=16_384,
        waiting_requests=64,
    )
    plan.tiers, plan.request_partitions = plan.tiers[:1], 1
    plan.session_s, plan.ttft_ms, plan.tokens_per_second, plan.slots = 2.5, 5.0, 50.0, 8
    copies = 4
    plan.clients = [
        replace(
            it,
            number=copies * place + copy + 1,
            at_s=(it.at_s + copy * plan.chaos_s / copies) % plan.chaos_s,
            draft=replace(
                it.draft,
                tier=plan.tiers[0],
                deadlines=patient,
                body=structs.replace(it.draft.body, max_tokens=2, n=1),
            ),
            mode="stream",
            key=None,
            resumable=True,
            leaves_after=None,
            cancels_after_s=None,
            patience_s=5.0,
        )
        for place, it in enumerate(plan.clients)
        for copy in range(copies)
    ]


@directed
def commits_race(plan: WorldPlan) -> None:
    """A commit is nearly always under way, some of them slow, when an epoch ends."""
    _many_small_ones(plan)
    _weather(plan, Weather(append_lost=0.05, slow=0.3))


@directed
def unchanged_goes_back(plan: WorldPlan) -> None:
    """Epochs end while the answer to a commit is outstanding."""
    _many_small_ones(plan)
    _weather(plan, Weather(append_lost=0.05, commit_unknown=0.5))


@directed
def resume_without_position(plan: WorldPlan) -> None:
    """No room, and partitions that come back in every rebalance."""
    plan.limits = replace(plan.limits, waiting_requests=1)
    plan.slots, plan.workers = 2, 2
    _busy(plan)
    _spread(plan, "storm", 5)


@directed
def speak_while_broken(plan: WorldPlan) -> None:
    """Two tiers, and publishes that fail for one while the other takes its partitions over."""
    _many_small_ones(plan)
    _weather(plan, Weather(refused=0.08))
    plan.tiers = ("premium", "standard")
    draw = random.Random(f"{plan.seed}/tiers")
    plan.clients = [
        replace(it, draft=replace(it.draft, tier=draw.choice(plan.tiers))) for it in plan.clients
    ]
    _spread(plan, "fences fail", 4)


@directed
def half_fenced_is_not_fenced(plan: WorldPlan) -> None:
    """Owners that die between their fences and their B, and readers that come late."""
    _exact(plan)
    _spread(plan, "ghost", 6)
    _spread(plan, "fence-deaf worker", 3)


@directed
def one_key_one_replica(plan: WorldPlan) -> None:
    """Retries that publish the same id again where it was published first, within its first second.

    No mutation is caught here: it shows that the turn of a key leaves an id one mailbox.
    """
    plan.replicas = 1
    _untrimmed(plan)
    plan.limits = replace(
        plan.limits,
        claim_lease_seconds=0.05,
        claim_life_seconds=60.0,
        publish_seconds=0.8,
    )
    _weather(plan, Weather(ack_lost=0.1, append_lost=0.1, append_late=0.1, slow=0.15))
    draw = random.Random(f"{plan.seed}/keys")
    first = replace(plan.clients[0], mode="stream", attach=True, cancels_after_s=None)
    plan.clients = [
        replace(first, number=number, at_s=draw.uniform(0.0, 1.5), key=f"key-{number % 2}")
        for number in range(1, 9)
    ]


@directed
def forget_claims_unread(plan: WorldPlan) -> None:
    """Claims with short lives beside long ones, and a broker that is away while the short ones end."""
    _exact(plan)
    _untrimmed(plan)
    plan.limits = replace(plan.limits, claim_life_seconds=1.0, deadline_margin_seconds=0.5)
    _weather(plan, Weather(slow=0.4))
    short = Deadlines(start_seconds=0.3, first_token_seconds=0.3, total_seconds=0.3)
    first = replace(plan.clients[0], mode="stream", attach=True, cancels_after_s=None)
    long = structs.replace(first.draft.deadlines, total_seconds=plan.limits.total_seconds)
    draw = random.Random(f"{plan.seed}/lives")
    plan.batches, plan.clients = [], []
    for number in range(1, 13):
        at_s = draw.uniform(0.0, 0.4) + (3.0 if number % 3 == 0 else 0.0)
        draft = replace(first.draft, deadlines=short if number % 3 == 1 else long)
        it = replace(first, number=number, at_s=at_s, draft=draft, key=f"key-{number // 3}")
        plan.clients.append(it)
    plan.troubles.append(Trouble(0.9, "broker away", 2.0))
    plan.troubles.sort(key=lambda it: it.at_s)


@directed
def believe_any_ack(plan: WorldPlan) -> None:
    """Clocks that agree, and acks that take long."""
    _exact(plan)
    _weather(plan, Weather(slow=0.4))


@directed
def hear_after_all_deadlines(plan: WorldPlan) -> None:
    """Deadlines so short that what is looked at again is past them all, and processes that sleep."""
    _untrimmed(plan)
    plan.tokens_per_second, plan.session_s = 50.0, 6.0  # so that who sleeps loses nothing
    plan.limits = replace(plan.limits, total_seconds=1.2, deadline_margin_seconds=0.5)
    short = Deadlines(start_seconds=1.0, first_token_seconds=1.0, total_seconds=1.2)
    plan.clients = [
        replace(
            it,
            at_s=min(it.at_s, 1.5),
            draft=replace(
                it.draft,
                deadlines=short,
                body=structs.replace(it.draft.body, presence_penalty=0.5 * (it.number % 2)),
            ),
            key=None,
            resumable=True,
        )
        for it in plan.clients
    ]
    plan.batches = []
    # a broker that is away for longer than all deadlines may store late what was sent before them
    plan.troubles = [it for it in plan.troubles if it.kind not in {"broker away", "weather"}]
    draw = random.Random(f"{plan.seed}/sleep")
    for _ in range(plan.workers):
        plan.troubles.append(Trouble(draw.uniform(0.1, 1.0), "pause worker", 4.0))
        plan.troubles.append(Trouble(draw.uniform(0.1, 1.0), "pause replica", 4.0))
    plan.troubles.sort(key=lambda it: it.at_s)


DIRECTED["nobody_is_late"] = half_fenced_is_not_fenced
DIRECTED["no_commit_check"] = half_fenced_is_not_fenced


@directed
def poison_parks_its_neighbours(plan: WorldPlan) -> None:
    """Everybody beside a request that kills engines, on one worker with room for all of them."""
    plan.poison = "it kills its engine"
    plan.troubles, plan.batches = [], []
    plan.workers, plan.slots, plan.request_partitions = 1, 16, 1
    plan.limits = replace(plan.limits, alone_hold_seconds=1.0, waiting_requests=64)
    _busy(plan)
    first, *others = plan.clients
    body = Body(prompt=f"{plan.seed}: {plan.poison}", max_tokens=2)
    draft = replace(first.draft, endpoint=COMPLETIONS, body=body, tier=plan.tiers[0])
    plan.clients = [replace(first, at_s=0.1, draft=draft, key=None, mode="background"), *others]


@directed
def wait_though_over(plan: WorldPlan) -> None:
    """Keyed requests that reach the log after their time, and clients of little patience."""
    short = Deadlines(start_seconds=0.3, first_token_seconds=0.3, total_seconds=0.3)
    plan.trims = False
    plan.limits = replace(plan.limits, reply_retention_seconds=60.0, claim_life_seconds=60.0)
    plan.batches = []
    plan.clients = [
        replace(
            it,
            draft=replace(it.draft, deadlines=short),
            mode="stream",
            key=f"key-{it.number}",
            attach=True,
            leaves_after=None,
            cancels_after_s=None,
            patience_s=0.8,
        )
        for it in plan.clients
    ]
    # the claims are on the log when it goes away, and the requests are not
    for it in plan.clients:
        plan.troubles.append(Trouble(it.at_s + 0.012, "broker away", 1.0))
    plan.troubles.sort(key=lambda it: it.at_s)


@directed
def forget_claims_by_own_clock(plan: WorldPlan) -> None:
    """Keys that are used again just before the life of their claims ends."""
    short = Deadlines(start_seconds=1.0, first_token_seconds=1.0, total_seconds=1.0)
    plan.trims, plan.batches, plan.troubles = False, [], []
    plan.offsets_ms = [0]
    plan.limits = replace(
        plan.limits,
        clock_skew_seconds=0.05,
        claim_life_seconds=1.0,
        reply_retention_seconds=60.0,
    )
    life_s = claim_life_seconds(plan.limits, short.total_seconds)
    plan.clients = [
        replace(
            it,
            draft=replace(it.draft, deadlines=short),
            key=f"key-{it.number}",
            attach=True,
            cancels_after_s=None,
        )
        for it in plan.clients[:6]
    ]
    plan.clients += [
        same_request(it, 500 + it.number, it.at_s + life_s - 0.5) for it in plan.clients
    ]


@directed
def expire_what_is_unread(plan: WorldPlan) -> None:
    """Replicas that stop while a short answer is given, and go on when its time is over."""
    short = Deadlines(start_seconds=1.0, first_token_seconds=1.0, total_seconds=1.0)
    plan.trims, plan.batches, plan.troubles = False, [], []
    plan.tokens_per_second, plan.ttft_ms, plan.slots = 50.0, 60.0, 8
    plan.limits = replace(
        plan.limits,
        deadline_margin_seconds=0.5,
        waiting_requests=64,
        reply_retention_seconds=60.0,
        claim_life_seconds=60.0,
    )
    plan.clients = [
        replace(
            it,
            draft=replace(
                it.draft, deadlines=short, body=structs.replace(it.draft.body, max_tokens=4)
            ),
            mode="stream",
            key=None,
            resumable=True,
            leaves_after=None,
            cancels_after_s=None,
            patience_s=5.0,
        )
        for it in plan.clients
    ]
    for it in plan.clients:
        plan.troubles.append(Trouble(it.at_s + 0.04, "pause replica", 2.7))
    plan.troubles.sort(key=lambda it: it.at_s)


@directed
def cancel_once(plan: WorldPlan) -> None:
    """Cancels that are carried out under an epoch that a late fence ends."""
    plan.clients = [replace(it, cancels_after_s=0.3 + 0.1 * (it.number % 9)) for it in plan.clients]
    half_fenced_is_not_fenced(plan)


@directed
def look_back_by_append_time(plan: WorldPlan) -> None:
    """A second of publishes that land late, behind the cancels of them, while no worker is there."""
    _exact(plan)
    _untrimmed(plan)
    plan.session_s, plan.tokens_per_second, plan.batches = 3.0, 20.0, []
    plan.limits = replace(plan.limits, publish_seconds=0.3)
    plan.troubles = [
        Trouble(0.01, "weather", 1.5, Weather(append_late=0.4)),
        Trouble(0.05, "kill all workers"),
    ]
    draw = random.Random(f"{plan.seed}/late")
    plan.clients = [
        replace(it, at_s=draw.uniform(0.1, 1.2), mode="stream", key=None, resumable=False)
        for it in plan.clients
    ]
