from runtime.clock import BrokerClock, SystemClock


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def monotonic_s(self) -> float:
        return self.ms / 1000

    def wall_ms(self) -> int:
        return self.ms


def test_without_an_observation_our_own_clock_stands_in() -> None:
    hands = Hands()
    assert BrokerClock(hands).now_ms() == hands.ms


def test_the_narrowest_span_decides() -> None:
    hands = Hands()
    clock = BrokerClock(hands)
    clock.observe(hands.ms + 5_000, hands.ms - 100, hands.ms + 100)
    clock.observe(hands.ms + 5_050, hands.ms - 2, hands.ms + 2)
    clock.observe(hands.ms + 5_020, hands.ms - 50, hands.ms + 50)
    assert clock.offset_ms == 5_050


def test_a_broker_whose_clock_was_set_is_believed_at_once() -> None:
    hands = Hands()
    clock = BrokerClock(hands)
    clock.observe(hands.ms, hands.ms - 1, hands.ms + 1)
    clock.observe(hands.ms + 3_600_000, hands.ms - 20, hands.ms + 20)
    assert clock.offset_ms == 3_600_000


def test_an_old_estimate_loses_to_a_newer_one_in_the_end() -> None:
    hands = Hands()
    clock = BrokerClock(hands)
    clock.observe(hands.ms, hands.ms, hands.ms)
    hands.ms += 60_000
    clock.observe(hands.ms + 6, hands.ms - 8, hands.ms + 8)
    assert clock.offset_ms == 6


def test_an_impossible_observation_is_ignored() -> None:
    hands = Hands()
    clock = BrokerClock(hands)
    clock.observe(-1, 0, 0)
    clock.observe(hands.ms + 9, hands.ms + 1, hands.ms)
    assert clock.offset_ms == 0


def test_the_system_clock_never_steps_back() -> None:
    clock = SystemClock()
    readings = [clock.wall_ms() for _ in range(100)]
    assert readings == sorted(readings)


def test_an_ack_that_says_less_than_our_own_clock_moves_nothing() -> None:
    hands = Hands()
    clock = BrokerClock(hands, skew_seconds=0.05)
    clock.observe(hands.ms - 100, hands.ms - 600, hands.ms)
    assert clock.offset_ms == 0
    clock.observe(hands.ms + 10, hands.ms - 20, hands.ms + 20)
    assert clock.offset_ms == 10


def test_a_clock_that_is_further_off_than_clocks_may_be_is_corrected_by_any_ack() -> None:
    hands = Hands()
    clock = BrokerClock(hands, skew_seconds=0.05)
    clock.observe(hands.ms + 60_000, hands.ms - 300, hands.ms + 300)
    assert clock.offset_ms == 60_000
