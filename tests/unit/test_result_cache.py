"""Answers kept in memory: bounded in bytes and in time, never another tenant's, never a deleted one."""

import asyncio
import tracemalloc
from dataclasses import dataclass, field

import msgspec
import pytest

from core.limits import Limits
from core.stream import Visible
from producer_api.result_cache import ResultCache, size_of
from runtime.metrics import Metrics
from schemas.replies import Accepted, TokenLogprob
from schemas.requests import RESPONSES, RequestInfo, ResponseEcho
from tests.fake_pipeline import finished, tokens

ANSWER: list[Visible] = [tokens(2, text="ab"), finished(2)]
SIZE = sum(size_of(event) for event in ANSWER)


@dataclass
class Place:
    now_s: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)

    def cache(self, answers: float = 10, seconds: float = 300.0) -> ResultCache:
        limits = Limits(result_cache_bytes=int(answers * SIZE), result_cache_seconds=seconds)
        return ResultCache(limits, self.metrics, lambda: self.now_s)

    def bytes(self) -> float:
        held: float = next(iter(self.metrics.result_cache_bytes.collect())).samples[0].value
        return held


@pytest.fixture
def place() -> Place:
    return Place()


def keep(cache: ResultCache, name: str, tenant: str = "a") -> None:
    recording = cache.record((tenant, name))
    assert recording is not None
    for event in ANSWER:
        recording.add([event])
    recording.close()


async def test_what_was_seen_to_the_end_is_found_for_its_tenant_alone(place: Place) -> None:
    cache = place.cache()
    keep(cache, "1")
    assert await cache.get(("a", "1")) == ANSWER
    assert await cache.get(("b", "1")) is None
    lookups = place.metrics.result_cache
    assert [lookups.labels(it)._value.get() for it in ("hit", "miss")] == [1, 1]


async def test_what_was_not_seen_to_the_end_is_forgotten(place: Place) -> None:
    cache = place.cache()
    recording = cache.record(("a", "1"))
    assert recording is not None
    recording.add(ANSWER[:1])
    assert place.bytes() > 0
    recording.close()
    recording.add(ANSWER[1:])
    assert (await cache.get(("a", "1")), place.bytes()) == (None, 0)


async def test_after_its_time_an_answer_is_gone(place: Place) -> None:
    cache = place.cache(seconds=300)
    keep(cache, "1")
    place.now_s = 299.9
    assert await cache.get(("a", "1")) == ANSWER
    place.now_s = 300.0
    assert (await cache.get(("a", "1")), place.bytes()) == (None, 0)


def test_nothing_is_recorded_that_would_be_kept_for_no_time(place: Place) -> None:
    assert place.cache(seconds=0.0).record(("a", "1")) is None


async def test_bytes_are_bounded_and_the_oldest_goes_first(place: Place) -> None:
    cache = place.cache(answers=3)
    for number in range(20):
        keep(cache, str(number))
        assert place.bytes() <= 3 * SIZE
    assert [number for number in range(20) if await cache.get(("a", str(number)))] == [17, 18, 19]
    assert place.metrics.result_cache_evictions.labels("bytes")._value.get() == 17


async def test_answers_on_their_way_count_and_one_too_large_is_not_kept(place: Place) -> None:
    cache = place.cache(answers=2)
    keep(cache, "small")
    recording = cache.record(("a", "large"))
    assert recording is not None
    for seq in range(100):
        recording.add([tokens(1, text="x", seq=seq)])
        assert place.bytes() <= 2 * SIZE
    recording.add([finished(100)])
    assert (await cache.get(("a", "large")), place.bytes()) == (None, 0)


async def test_one_answer_is_recorded_once(place: Place) -> None:
    cache = place.cache()
    first = cache.record(("a", "1"))
    assert first is not None
    assert cache.record(("a", "1")) is None
    first.add(ANSWER)
    assert cache.record(("a", "1")) is None
    assert len(cache) == 1


async def test_a_deletion_takes_what_is_kept_and_what_is_on_its_way(place: Place) -> None:
    cache = place.cache()
    keep(cache, "1")
    recording = cache.record(("a", "2"))
    assert recording is not None
    recording.add(ANSWER[:1])
    for name in ("1", "2", "unknown"):
        cache.drop(("a", name))
    recording.add(ANSWER[1:])
    assert [await cache.get(("a", name)) for name in ("1", "2")] == [None, None]
    assert place.bytes() == 0


async def test_what_was_not_to_be_stored_is_not_kept(place: Place) -> None:
    echo = ResponseEcho(store=False)
    info = RequestInfo(endpoint=RESPONSES, model="m", tier="standard", response=echo)
    for kept, about in ((False, info), (True, msgspec.structs.replace(info, response=None))):
        cache = place.cache()
        recording = cache.record(("a", "1"))
        assert recording is not None
        recording.add([Accepted(id="1", tenant="a", info=about)])
        recording.add(ANSWER)
        assert (await cache.get(("a", "1")) is not None) == kept


async def test_larger_texts_and_schemas_take_more(place: Place) -> None:
    small = RequestInfo(endpoint=RESPONSES, model="m", tier="standard")
    echo = ResponseEcho(instructions="x" * 1000, text_format={"schema": {"a" * 1000: 1}})
    large = msgspec.structs.replace(small, response=echo)
    sizes = [size_of(Accepted(id="1", tenant="a", info=it)) for it in (small, large)]
    assert sizes[1] - sizes[0] > 2000
    assert size_of(tokens(1, text="x" * 1000)) - size_of(tokens(1)) > 1000


async def test_an_answer_of_many_pieces_is_found_as_it_was_and_takes_little(place: Place) -> None:
    cache = place.cache(answers=1000)
    recording = cache.record(("a", "1"))
    assert recording is not None
    logprobs = (TokenLogprob(token="x", logprob=-0.5),)
    replace = msgspec.structs.replace
    answer: list[Visible] = [
        *(tokens(1, text=f"w{i} ", seq=i) for i in range(300)),
        tokens(0, text="half a character: \u00e9\U0001f600", seq=300),
        tokens(5, text="five", seq=300),
        *(tokens(2, text="other", seq=seq, choice=choice) for seq in (0, 2) for choice in (1, 2)),
        replace(tokens(1, text="x", seq=305), logprobs=logprobs),
        replace(tokens(1, text="id", seq=306), token_ids=(1 << 70,)),
        *(replace(tokens(1, text="again ", seq=307 + i), epoch=9) for i in range(3)),
        *(replace(tokens(1, text="once more ", seq=310 + i), epoch=12) for i in range(3)),
        tokens(1, text="end", seq=313, end=True),
        finished(314),
    ]
    for event in answer:
        recording.add([event])
    assert await cache.get(("a", "1")) == answer
    assert place.bytes() < sum(map(size_of, answer)) / 8


async def test_an_answer_too_large_to_be_read_at_once_is_left_to_the_log(place: Place) -> None:
    limits = Limits(result_cache_answer_bytes=100_000)
    for count, kept in ((100, True), (1000, False)):
        cache = ResultCache(limits, place.metrics)
        recording = cache.record(("a", "1"))
        assert recording is not None
        for seq in range(count):
            recording.add([tokens(1, text="word", seq=seq)])
        recording.add([finished(count)])
        found = await cache.get(("a", "1"))
        assert (found is not None) == kept
        assert (place.bytes() > 0) == kept
    assert place.metrics.result_cache_evictions.labels("bytes")._value.get() == 1


async def test_others_have_turns_while_a_long_answer_is_read(place: Place) -> None:
    cache = place.cache(answers=1000)
    recording = cache.record(("a", "1"))
    assert recording is not None
    answer: list[Visible] = [tokens(1, text="word", seq=seq) for seq in range(5000)]
    recording.add([*answer, finished(5000)])
    reading = asyncio.create_task(cache.get(("a", "1")))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 5
    assert await reading == [*answer, finished(5000)]


async def test_what_is_counted_is_about_what_is_held(place: Place) -> None:
    cache = place.cache(answers=10_000)
    recording = cache.record(("a", "1"))
    assert recording is not None
    sizes = [1, 3000, *[1] * 300]
    seqs = [sum(sizes[:index]) for index in range(len(sizes))]
    tracemalloc.start()
    try:
        for seq, count in zip(seqs, sizes, strict=True):
            recording.add([tokens(count, seq=seq, text="é" * 4 * count)])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.7 < place.bytes() / held < 1.4
