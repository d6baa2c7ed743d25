"""Python's cycle collector, kept from what a process starts with."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import in here what a process needs.

    Nearly all of that stays, and the collector would look through it a hundred times as it grows:
    a fifth of what a start takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def freeze_startup_objects() -> None:
    """Call once a process is built: what exists then lives as long as it does.

    A full collection looks at every object and everything waits meanwhile: 60 ms in a worker
    or a gateway, nearly all for modules and models that nothing will ever free.
    """
    gc.collect()
    gc.freeze()
