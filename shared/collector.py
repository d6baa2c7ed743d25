"""Python's cycle collector, kept from what a process starts with."""

import gc


def spare_what_stands() -> None:
    """Call once a process is built: what exists then lives as long as it does.

    A full collection looks at every object and everything waits meanwhile: 60 ms in a worker
    or a gateway, nearly all for modules and models that nothing will ever free.
    """
    gc.collect()
    gc.freeze()
