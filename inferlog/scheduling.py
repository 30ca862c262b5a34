"""How the processes of one machine share its cores with a model that computes on them."""

import os
from contextlib import suppress


def let_the_model_compute(engine: str) -> None:
    """Beside vLLM neither this process nor a child of it interrupts who is computing, when it wakes.

    It waits for a core that is idle or whose turn is over, a few milliseconds at most; its share of the
    cores stays the same. The threads of a model on CPU wait for each other many times a step: whoever
    interrupts one of them stops all. Beside other engines nothing changes, nor where the system knows
    no such policy or forbids it, nor if whoever started us has chosen another one.
    """
    if engine != "vllm" or not hasattr(os, "SCHED_BATCH"):
        return
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
