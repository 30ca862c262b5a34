"""What a seed means: the sizes, the workload and the troubles of one run, drawn before it begins."""

import random
from dataclasses import dataclass, field, replace

from core.limits import Limits
from producer_api.submission import Draft
from schemas.requests import CHAT, COMPLETIONS, TIERS, Body, Deadlines, Message, Tier
from tests.simulation.client import Plan, same_request
from tests.simulation.cluster import Weather
from tests.simulation.producer import Batch

TENANTS = ("ann", "bob")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that goes wrong at `at_s`, for `seconds` where it has a length."""

    at_s: float
    kind: str
    seconds: float = 0.0
    weather: Weather | None = None


@dataclass(slots=True)
class WorldPlan:
    """All that is drawn from a seed."""

    seed: int
    limits: Limits
    tiers: tuple[Tier, ...]
    workers: int
    replicas: int
    request_partitions: int
    reply_partitions: int
    slots: int
    tokens_per_second: float
    ttft_ms: float
    session_s: float
    chaos_s: float
    clients: list[Plan] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    offsets_ms: list[int] = field(default_factory=list)
    trims: bool = False
    cancels: bool = False
    poison: str | None = None
    """An engine dies of prompts with this text."""


def make_plan(seed: int, size: float = 1.0) -> WorldPlan:
    """`size` scales the number of requests, and the room that there is for them.

    Faults last as long as ever; a large world has some more of them.
    """
    draw = random.Random(f"{seed}/plan")
    trims = draw.random() < 0.12
    keys = draw.random() < 0.2
    exact = draw.random() < 0.3
    cancels = draw.random() < 0.15
    total_s = draw.choice([4.0, 6.0]) if trims else draw.choice([8.0, 12.0, 20.0])
    limits = Limits(
        start_seconds=min(total_s, draw.choice([5.0, 8.0])),
        first_token_seconds=min(total_s, 8.0),
        total_seconds=total_s,
        deadline_margin_seconds=3.0,
        publish_seconds=draw.choice([1.5, 3.0]),
        # where all clocks agree, readers that start late start as late as they can
        clock_skew_seconds=0.05 if exact else 2.0,
        # a large world may take minutes to come to rest
        reply_retention_seconds=3 * total_s if trims else 60.0 if size < 8 else 240.0,
        claim_life_seconds=draw.choice([1.0, 6.0]) if keys else 60.0,
        claim_lease_seconds=draw.choice([0.2, 0.6, 1.5]),
        span_offsets=max(1, int(draw.choice([2, 3, 4, 16, 16_384]) * size)),
        mailbox_events=draw.choice([3, 6, 1024]),
        waiting_requests=max(1, int(draw.choice([2, 4, 64]) * size)),
        scans_per_tenant=2,
    )
    plan = WorldPlan(
        seed=seed,
        limits=limits,
        tiers=tuple(sorted(draw.sample(TIERS[:3], draw.choice([1, 1, 2])))),
        workers=draw.choice([2, 2, 3]),
        replicas=2,
        request_partitions=draw.choice([1, 2, 2, 3]),
        reply_partitions=draw.choice([1, 2, 2, 3]) * max(1, round(size / 2)),
        slots=max(1, int(draw.choice([2, 3, 8]) * size)),
        tokens_per_second=8.0 if cancels else draw.choice([8.0, 20.0, 50.0]),
        ttft_ms=draw.choice([5.0, 60.0]),
        session_s=draw.choice([1.0, 1.5, 2.5]),
        chaos_s=draw.uniform(2.5, 6.0) * (3.0 if trims or keys else 1.0),
        trims=trims,
        cancels=cancels,
    )
    plan.offsets_ms = [0 if exact else draw.choice([0, 0, 0, -1500, 700, 1800]) for _ in range(12)]
    _draw_clients(plan, draw, max(1, int(draw.randint(4, 12) * size)), keys)
    if keys and not trims:
        _draw_rivals(plan, draw)
    _draw_batches(plan, draw, max(0, int(draw.randint(0, 5) * size)))
    _draw_troubles(plan, draw, 5 if size >= 8 else 0)
    if size >= 8:  # else most of what there is to do is to tell the impatient that it is not done
        plan.clients = [replace(it, rests=5.0) for it in plan.clients]
    return plan


def _draw_draft(plan: WorldPlan, draw: random.Random, number: int, tenant: str) -> Draft:
    total_s = plan.limits.total_seconds
    # answers of up to a third of the time there is: what is slower by a takeover still ends in time
    longest = max(2, int(plan.tokens_per_second * total_s / (3 if plan.cancels else 6)))
    tokens = longest if plan.cancels else draw.choice([1, 2, 5, min(12, longest), longest])
    prompt = f"prompt {number} of {plan.seed} " + "word " * draw.randint(0, 3)
    chat = draw.random() < 0.5
    stop: tuple[str, ...] = ()
    if draw.random() < 0.25:
        stop = tuple(draw.sample([".3 ", ".1", "never", "2 ", ".11 "], draw.choice([1, 2])))
    body = Body(
        messages=(Message(role="user", content=prompt),) if chat else None,
        prompt=None if chat else prompt,
        max_tokens=tokens,
        n=draw.choice([1, 1, 1, 2, 3]),
        stop=stop,
        logprobs=draw.choice([None, None, None, 1]),
        presence_penalty=0.5 if draw.random() < 0.05 else 0.0,
    )
    budgets = Deadlines(
        start_seconds=plan.limits.start_seconds,
        first_token_seconds=plan.limits.first_token_seconds,
        total_seconds=total_s,
    )
    if draw.random() < 0.06:
        short_s = draw.choice([0.3, 1.0])
        budgets = Deadlines(
            start_seconds=short_s, first_token_seconds=short_s, total_seconds=short_s
        )
    return Draft(
        tenant=tenant,
        tier=draw.choice(plan.tiers),
        model="scripted",
        endpoint=CHAT if chat else COMPLETIONS,
        body=body,
        deadlines=budgets,
        stream=True,
    )


def _draw_clients(plan: WorldPlan, draw: random.Random, count: int, keys: bool) -> None:
    number = 0
    for _ in range(count):
        number += 1
        tenant = draw.choice(TENANTS)
        draft = _draw_draft(plan, draw, number, tenant)
        keyed = draw.random() < (0.9 if keys else 0.3)
        it = Plan(
            number=number,
            at_s=draw.uniform(0.0, plan.chaos_s),
            draft=draft,
            mode=draw.choice(["stream", "stream", "stream", "whole", "background"]),
            key=f"key-{draw.randint(1, 3) if keys else number}" if keyed else None,
            attach=draw.random() < 0.7,
            resumable=draw.random() < 0.6,
            leaves_after=draw.randint(1, 6) if draw.random() < 0.4 else None,
            cancels_after_s=draw.uniform(0.05, 2.0)
            if draw.random() < (0.7 if plan.cancels else 0.12)
            else None,
            patience_s=draw.choice([0.8, 3.0, 5.0]),
            steps_back=draw.choice([0, 0, 1, 3]),
        )
        if it.key is not None and keys:
            # one payload per key, now and then another one
            other = 0 if draw.random() < 0.9 else 1000
            same = random.Random(f"{plan.seed}/{it.key}/{other}")
            drawn = _draw_draft(plan, same, other + int(it.key[-1]), tenant)
            it = replace(it, draft=replace(drawn, deadlines=draft.deadlines))
        plan.clients.append(it)
        if it.key is not None and draw.random() < 0.5:
            number += 1
            plan.clients.append(
                same_request(it, number, it.at_s + draw.choice([0.0, 0.01, 0.5, 3.0]))
            )


def _draw_rivals(plan: WorldPlan, draw: random.Random) -> None:
    """Two that claim one key at once, the loser for longer; a third comes when the winner's ends."""
    at_s = draw.uniform(0.1, 1.0)
    tenant = draw.choice(TENANTS)
    short = Deadlines(start_seconds=0.5, first_token_seconds=0.5, total_seconds=0.5)
    life_s = max(plan.limits.claim_life_seconds, 1.0 + plan.limits.deadline_margin_seconds)
    for number, delay_s, deadlines in (
        (901, 0.0, short),
        (902, draw.choice([0.0, 0.003]), None),
        (903, life_s + draw.uniform(0.2, 2.0), None),
    ):
        draft = _draw_draft(plan, random.Random(f"{plan.seed}/rivals"), 900, tenant)
        long = Deadlines(
            start_seconds=plan.limits.start_seconds,
            first_token_seconds=plan.limits.first_token_seconds,
            total_seconds=plan.limits.total_seconds,
        )
        plan.clients.append(
            Plan(
                number=number,
                at_s=at_s + delay_s,
                draft=replace(draft, deadlines=deadlines or long),
                mode="stream",
                key="rivals",
                attach=True,
                resumable=True,
            )
        )


def _draw_batches(plan: WorldPlan, draw: random.Random, count: int) -> None:
    lease_s, total_s = plan.limits.claim_lease_seconds, plan.limits.total_seconds
    for number in range(1, count + 1):
        again: tuple[float, ...] = ()
        if draw.random() < 0.6:
            again = (draw.choice([0.0, 0.05, lease_s + 0.3, lease_s + 1.5, total_s + 1.0]),)
        plan.batches.append(
            Batch(
                number=number,
                at_s=draw.uniform(0.0, plan.chaos_s),
                draft=_draw_draft(plan, draw, 500 + number, draw.choice(TENANTS)),
                again_s=again,
                elsewhere=draw.random() < 0.4,
                garbage=draw.random() < 0.08,
            )
        )


KINDS = (
    "kill worker",
    "kill worker",
    "kill worker",
    "pause worker",
    "pause worker",
    "pause worker",
    "expel worker",
    "retire worker",
    "kill replica",
    "pause replica",
    "retire replica",
    "broker away",
    "weather",
    "weather",
    "storm",
    "fences fail",
    "request refused",
    "blink",
    "deaf worker",
    "deaf worker",
    "fence-deaf worker",
    "ghost",
    "ghost",
)


def _draw_troubles(plan: WorldPlan, draw: random.Random, more: int) -> None:
    for _ in range(draw.randint(1, 7) + more):
        kind = draw.choice(KINDS)
        seconds, weather = 0.0, None
        if kind.startswith("pause"):
            seconds = draw.choice([0.2, plan.session_s * 0.9, plan.session_s * 1.5, 4.0])
        elif kind == "broker away":
            seconds = draw.choice([0.1, 0.8, 2.0, 5.0])
        elif kind == "weather":
            seconds = draw.uniform(0.5, 3.0)
            weather = _draw_weather(draw)
        elif kind.endswith("deaf worker"):
            seconds = plan.session_s * draw.uniform(0.6, 1.5)
        elif kind == "ghost":
            seconds = draw.choice([0.0, 0.05, 0.3])
        elif kind == "blink":
            seconds = draw.uniform(0.01, 0.3)  # out of the group and back, as rebalances do
        plan.troubles.append(Trouble(draw.uniform(0.2, plan.chaos_s), kind, seconds, weather))
    if plan.cancels:
        # whoever takes over then has not been there when the cancels came
        for _ in range(2):
            plan.troubles.append(Trouble(draw.uniform(0.5, plan.chaos_s), "kill all workers"))
    plan.troubles.sort(key=lambda it: it.at_s)


def _draw_weather(draw: random.Random) -> Weather:
    weather = Weather()
    for name in draw.sample(
        [
            "ack_lost",
            "append_lost",
            "append_late",
            "refused",
            "duplicate",
            "commit_unknown",
            "slow",
        ],
        draw.choice([1, 2, 3]),
    ):
        setattr(weather, name, draw.choice([0.01, 0.05, 0.15, 0.4]))
    return weather
