"""Settings of Python's cyclic garbage collector that keep full collections out of the way of live work.

A full collection traverses every tracked object and stops the process meanwhile. Most of these objects are
modules, classes and pydantic models that are never freed, so the three functions here keep the collector from
looking at them:

    gc_paused                around the imports of a process
    freeze_startup_objects   when a worker is built
    tune_for_streaming       when a gateway is built
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

# The number of new container objects that starts a collection of the young generation: the parsed reply of one log
# page has 2,000. The others are how many young collections start a middle one, and how many of those a full one.
STREAMING_THRESHOLDS: Final = (5_000, 5, 4)
# Every n-th full collection also looks at the frozen objects.
UNFREEZE_EVERY: Final = 50
_FULL: Final = 2


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disables the collector, for the imports that a process needs.

    Nearly all imported objects stay. The collector would traverse them a hundred times while they are created,
    which is a fifth of the start-up time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def freeze_startup_objects() -> None:
    """Excludes all objects that exist now from later collections. Call it once, when the process is built.

    Without it, a full collection in a worker or a gateway takes 60 ms.
    """
    gc.collect()
    gc.freeze()


def tune_for_streaming() -> None:
    """Freezes the startup objects, and from then on whatever survives a full collection. Call it once.

    With 1,000 open streams a full collection takes 90 to 135 ms with Python's defaults, by far the longest delay of
    an event. The objects of a stream live long and are freed by their reference counts. A reference cycle that was in
    use during one full collection and was dropped later is found by every `UNFREEZE_EVERY`-th.
    """
    freeze_startup_objects()
    gc.set_threshold(*STREAMING_THRESHOLDS)
    collections = count(1)

    def freeze_survivors(phase: str, info: dict[str, Any]) -> None:
        if info["generation"] != _FULL:
            return
        if phase == "stop":
            gc.freeze()
        elif next(collections) % UNFREEZE_EVERY == 0:
            gc.unfreeze()

    gc.callbacks.append(freeze_survivors)
