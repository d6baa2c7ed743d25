"""Objects that live as long as the process are not traversed by the garbage collector."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from stagebus.shared.runtime import gc_tuning
from stagebus.shared.runtime.gc_tuning import freeze_startup_objects, gc_paused


@pytest.fixture
def tuned_for_streaming() -> Iterator[None]:
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    gc_tuning.tune_for_streaming()
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks[:] = callbacks
    gc.unfreeze()


def test_frozen_startup_objects_are_not_tracked() -> None:
    startup_objects = [[] for _ in range(100)]
    freeze_startup_objects()
    try:
        tracked = {id(one) for one in gc.get_objects()}

        assert not tracked & {id(one) for one in startup_objects}
    finally:
        gc.unfreeze()


def test_paused_gc_collects_nothing() -> None:
    before = [generation["collections"] for generation in gc.get_stats()]
    with gc_paused():
        kept = [[number] for number in range(10_000)]
        during = [generation["collections"] for generation in gc.get_stats()]

    assert len(kept) == 10_000
    assert during == before
    assert gc.isenabled()


def test_gc_is_enabled_again_after_a_failed_import() -> None:
    with pytest.raises(ImportError), gc_paused():
        raise ImportError

    assert gc.isenabled()


@pytest.mark.usefixtures("tuned_for_streaming")
def test_survivors_of_a_full_collection_are_frozen() -> None:
    kept = [[number] for number in range(10_000)]
    assert any(kept is tracked for tracked in gc.get_objects())
    gc.collect()

    assert len(gc.get_objects()) < 1_000, "of all that was imported and made so far"
    assert len(kept) == 10_000


@pytest.mark.usefixtures("tuned_for_streaming")
def test_log_page_starts_no_collection() -> None:
    """Its events are freed by their reference counts, many of them in one iteration of the event loop."""
    before = [generation["collections"] for generation in gc.get_stats()]
    for _ in range(10):
        page = [[b"0-1", [b"event", b"x", b"data", b"{}"]] for _ in range(1_000)]
        del page

    assert [generation["collections"] for generation in gc.get_stats()] == before


@pytest.mark.usefixtures("tuned_for_streaming")
def test_cycle_that_was_frozen_while_in_use_is_collected_later() -> None:
    class Request:
        def __init__(self) -> None:
            self.me = self

    request = Request()
    seen = weakref.ref(request)
    gc.collect()
    del request
    for _ in range(gc_tuning.UNFREEZE_EVERY - 2):
        gc.collect()
    assert seen() is not None, "frozen objects are not collected"
    gc.collect()

    assert seen() is None
