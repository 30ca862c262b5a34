"""Who shares the cores with a model, and how."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, subprocess, sys
from inferlog.scheduling import let_the_model_compute
os.sched_setscheduler(0, int(sys.argv[2]), os.sched_param(0))
let_the_model_compute(sys.argv[1])
ask = "import os; print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"
print(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout)
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the system knows no such policy")
@pytest.mark.parametrize(
    ("engine", "before", "after"),
    [
        ("vllm", "SCHED_OTHER", "SCHED_BATCH"),
        ("scripted", "SCHED_OTHER", "SCHED_OTHER"),
        ("vllm", "SCHED_IDLE", "SCHED_IDLE"),
    ],
)
def test_beside_a_model_children_wait_for_their_turn_and_keep_their_share(
    engine: str, before: str, after: str
) -> None:
    words = [sys.executable, "-c", CODE, engine, str(getattr(os, before))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert done.stdout.split() == [str(getattr(os, after)), str(nice)]
