"""The collector of cycles runs rarely, and still runs."""

import gc
import weakref

from runtime import garbage


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_left_alone_and_new_cycles_are_still_found() -> None:
    before = gc.get_threshold()
    try:
        garbage.settle()
        assert gc.get_freeze_count() > 0
        knot = weakref.ref(Knot())
        more: list[list[int]] = [[] for _ in range(20_000)]  # twice what may come between two looks
        assert (knot(), len(more)) == (None, 20_000)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
