"""How the processes of one machine share its cores with a model that computes on them."""

import os


def let_the_model_compute(engine: str) -> None:
    """Beside vLLM neither this process nor a child of it interrupts who is computing, when it wakes.

    It waits for a core that is idle or whose turn is over, a few milliseconds at most; its share of the
    cores stays the same. The threads of a model on CPU wait for each other many times a step: whoever
    interrupts one of them stops all. Beside other engines nothing changes, nor where the system knows
    no such policy.
    """
    if engine == "vllm" and hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
