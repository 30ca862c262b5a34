"""Imported by every Python process that finds this folder on its path: the product with one fault.

`MUTATION` names it (`tests.simulation.mutations`); it stays for the life of the process.
"""

import contextlib
import os

from tests.simulation.mutations import MUTATIONS

if name := os.environ.get("MUTATION"):
    MUTATIONS[name](contextlib.ExitStack())
