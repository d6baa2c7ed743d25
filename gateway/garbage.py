"""The garbage collector, kept from stopping the streams.

A full collection looks at every object that there is, and nothing else is done meanwhile: 90-135 ms
with 1,000 streams as Python comes, the longest wait that an event had here by far. But what a gateway
holds lives long, and what it drops goes by its reference counts. So what survived a full
collection is not looked at again, and there are fewer of them.
"""

import gc
from typing import Any, Final

# Young objects more than there were, before they are looked at: a page of the log, as the parser gives
# it, is 2,000. Then how many such looks make one at the middle-aged, and how many of those a full one.
THRESHOLDS: Final = (5_000, 5, 4)
_FULL: Final = 2


def settle() -> None:
    """Call it once all is built that stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(_keep_survivors)


def _keep_survivors(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == _FULL:
        gc.freeze()
