"""Python's cyclic garbage collector, set for a process that serves for a long time.

Reference counts free nearly all that a request makes. The collector looks for cycles, and by default
does so after every 700 containers more: under load that is several times per request, and each time it
walks what is in flight. It cost a quarter of the API's CPU. When it looks at all that is old, with
10,000 streams open, the event loop stands still for half a second (docs/performance.md).
"""

import asyncio
import gc
import random
import resource
from pathlib import Path

YOUNG_CONTAINERS = 10_000
"""So many more containers than before start a look at the young ones: a walk of about a millisecond."""
LOOK_SECONDS = 0.2
"""So often what came since is looked at, before it is much. What is still needed is never looked at again …"""
FULL_SECONDS = 3600.0
"""… but for so often, give or take a tenth, because a cycle may have formed of it. Served requests leave
none that we know of."""
GROWN_BYTES = 256 * 1024 * 1024
"""Cycles may be why a process has grown by so much since, and doubled: then all is looked at before."""
NEVER = 1_000_000_000


async def look_now_and_then() -> None:
    """Looks for ever; start it once a process is ready. Set back when it is cancelled."""
    loop = asyncio.get_running_loop()
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_CONTAINERS, NEVER, NEVER)
    try:
        while True:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            full_s = loop.time() + FULL_SECONDS * random.uniform(0.9, 1.1)
            least = resident_bytes()
            grown = max(2 * least, least + GROWN_BYTES)
            while loop.time() < full_s and resident_bytes() < grown:
                await asyncio.sleep(LOOK_SECONDS)
                gc.collect(1)
                gc.freeze()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def resident_bytes() -> int:
    """The process's memory; 0 where the system does not tell (it is not Linux)."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]
    except FileNotFoundError:
        return 0
    return int(pages) * resource.getpagesize()
