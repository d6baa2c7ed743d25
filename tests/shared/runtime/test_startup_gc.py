"""What stands when a process is built is looked at no more."""

import gc

import pytest

from stagebus.shared.runtime.startup_gc import freeze_startup_objects, gc_paused


def test_collection_passes_over_what_stood_before() -> None:
    standing = [[] for _ in range(100)]
    freeze_startup_objects()
    try:
        looked_at = {id(one) for one in gc.get_objects()}

        assert not looked_at & {id(one) for one in standing}
    finally:
        gc.unfreeze()


def test_nothing_is_collected_while_it_is_paused() -> None:
    before = [generation["collections"] for generation in gc.get_stats()]
    with gc_paused():
        kept = [[number] for number in range(10_000)]
        during = [generation["collections"] for generation in gc.get_stats()]

    assert len(kept) == 10_000
    assert during == before
    assert gc.isenabled()


def test_failed_import_does_not_leave_it_paused() -> None:
    with pytest.raises(ImportError), gc_paused():
        raise ImportError

    assert gc.isenabled()
