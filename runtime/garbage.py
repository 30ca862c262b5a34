"""Python's cyclic garbage collector, set for a process that serves for a long time.

Reference counts free nearly all that a request makes. The collector looks for cycles, and by default
does so after every 700 containers more: under load that is several times per request, and each time it
walks what is in flight. It cost a quarter of the API's CPU (docs/performance.md).
"""

import gc

YOUNG_CONTAINERS = 10_000
"""So many more containers than before start a look at the young ones: a walk of about a millisecond."""
MIDDLE_AFTER = 10
OLD_AFTER = 10


def settle() -> None:
    """Call it once a process is ready: what is there stays, and is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_CONTAINERS, MIDDLE_AFTER, OLD_AFTER)
