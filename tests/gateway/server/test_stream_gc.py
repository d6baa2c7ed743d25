"""The collector after start: what lives long is not looked at again."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from stagebus.gateway.server import stream_gc


@pytest.fixture
def settled() -> Iterator[None]:
    before, callbacks = gc.get_threshold(), list(gc.callbacks)
    stream_gc.settle()
    yield
    gc.set_threshold(*before)
    gc.callbacks[:] = callbacks
    gc.unfreeze()


@pytest.mark.usefixtures("settled")
def test_what_survived_a_full_collection_is_not_looked_at_again() -> None:
    kept = [[number] for number in range(10_000)]
    assert any(kept is seen for seen in gc.get_objects())
    gc.collect()

    assert len(gc.get_objects()) < 1_000, "of all that was imported and made so far"
    assert len(kept) == 10_000


@pytest.mark.usefixtures("settled")
def test_a_page_of_the_log_starts_no_collection() -> None:
    """Its events die by their reference counts, many of them in one turn."""
    before = [generation["collections"] for generation in gc.get_stats()]
    for _ in range(10):
        page = [[b"0-1", [b"event", b"x", b"data", b"{}"]] for _ in range(1_000)]
        del page

    assert [generation["collections"] for generation in gc.get_stats()] == before


@pytest.mark.usefixtures("settled")
def test_a_cycle_that_was_in_use_at_a_collection_goes_in_the_end() -> None:
    class Request:
        def __init__(self) -> None:
            self.me = self

    request = Request()
    seen = weakref.ref(request)
    gc.collect()
    del request
    for _ in range(stream_gc.THOROUGH_EVERY - 2):
        gc.collect()
    assert seen() is not None, "collections look at what is new"
    gc.collect()

    assert seen() is None
