"""The garbage collector, kept from stopping the streams.

A full collection looks at every object that there is, and nothing else is done meanwhile: 90-135 ms
with 1,000 streams as Python comes, the longest wait that an event had here by far. But what a gateway
holds lives long, and what it drops goes by its reference counts. So what survived a full
collection is not looked at again, but for once in many times: a cycle that was in use at that
moment and was dropped later would stay for good.
"""

import gc
from itertools import count
from typing import Any, Final

# Young objects more than there were, before they are looked at: a page of the log, as the parser gives
# it, is 2,000. Then how many such looks make one at the middle-aged, and how many of those a full one.
THRESHOLDS: Final = (5_000, 5, 4)
# Of so many full collections one looks at everything.
THOROUGH_EVERY: Final = 50
_FULL: Final = 2


def settle() -> None:
    """Call it once all is built that stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    collections = count(1)

    def keep_survivors(phase: str, info: dict[str, Any]) -> None:
        if info["generation"] != _FULL:
            return
        if phase == "stop":
            gc.freeze()
        elif next(collections) % THOROUGH_EVERY == 0:
            gc.unfreeze()

    gc.callbacks.append(keep_survivors)
