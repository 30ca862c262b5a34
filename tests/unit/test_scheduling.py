"""Who shares the cores with a model, and how."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, subprocess, sys
from inferlog.scheduling import let_the_model_compute
let_the_model_compute()
ask = "import os; print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"
print(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout)
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the system knows no such policy")
def test_children_wait_for_their_turn_and_keep_their_share() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(os.SCHED_BATCH),
        str(os.getpriority(os.PRIO_PROCESS, 0)),
    ]
