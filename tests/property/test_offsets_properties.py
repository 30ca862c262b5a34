"""Whatever order offsets complete in, no commit goes beyond what is complete."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.offsets import Handle, OffsetTracker, decode_positions, encode_positions

PARTITIONS = 3


class Offsets(RuleBasedStateMachine):
    """A model that keeps everything beside the tracker that forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker(5)
        self.handles: dict[int, Handle] = {}
        self.spoken: dict[int, tuple[int, int]] = {}
        self.found: dict[int, tuple[int, int]] = {}
        self.reached = dict.fromkeys(range(PARTITIONS), 0)
        self.lows = [5]

    @rule(gap=st.integers(0, 3))
    def track(self, gap: int) -> None:
        offset = self.tracker.next + gap
        handle = self.tracker.track(offset)
        assert handle.offset == offset
        assert self.tracker.next == offset + 1
        self.handles[offset] = handle

    @rule(back=st.integers(1, 5))
    def track_again(self, back: int) -> None:
        before = self.tracker.next
        try:
            self.tracker.track(before - back)
        except ValueError:
            assert self.tracker.next == before
        else:
            raise AssertionError("an offset was tracked twice")

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self.handles[data.draw(st.sampled_from(sorted(self.handles)))].complete()

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), partition=st.integers(0, PARTITIONS - 1))
    def speak(self, data: st.DataObject, partition: int) -> None:
        offset = data.draw(st.sampled_from(sorted(self.handles)))
        handle = self.handles[offset]
        if handle.spoken_at is None and not handle.done:
            handle.spoken_at = self.spoken[offset] = (partition, self.reached[partition])

    @rule(partition=st.integers(0, PARTITIONS - 1), more=st.integers(1, 9))
    def acknowledge(self, partition: int, more: int) -> None:
        self.reached[partition] += more

    @rule(ahead=st.integers(0, 6), partition=st.integers(0, PARTITIONS - 1))
    def found_by_the_fold(self, ahead: int, partition: int) -> None:
        place = (partition, self.reached[partition] // 2)
        self.found.setdefault(self.tracker.low() + ahead, place)

    @invariant()
    def low_is_the_lowest_incomplete(self) -> None:
        still_open = [offset for offset, handle in self.handles.items() if not handle.done]
        low = self.tracker.low()
        assert low == min(still_open, default=self.tracker.next)
        assert self.tracker.incomplete() == len(still_open)
        assert low >= self.lows[-1]
        self.lows.append(low)

    @invariant()
    def a_successor_that_folds_from_the_positions_misses_nothing(self) -> None:
        point = self.tracker.commit_point(self.reached, self.found)
        assert point.offset == self.tracker.low()
        for partition, position in enumerate(point.positions):
            places = [
                at
                for spoken in (self.spoken, self.found)
                for offset, (p, at) in spoken.items()
                if offset >= point.offset and p == partition
            ]
            assert position == min([*places, self.reached[partition]])
        assert decode_positions(encode_positions(point.positions)) == point.positions


TestOffsets = Offsets.TestCase
TestOffsets.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_foreign_metadata_is_no_position() -> None:
    for metadata in ("", "1", "2:1,2", "1:", "1:a", "1:-1", "1:1,,2", "set by hand"):
        assert decode_positions(metadata) is None
