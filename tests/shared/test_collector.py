"""What stands when a process is built is looked at no more."""

import gc

from shared.collector import spare_what_stands


def test_collection_passes_over_what_stood_before() -> None:
    standing = [[] for _ in range(100)]
    spare_what_stands()
    try:
        looked_at = {id(one) for one in gc.get_objects()}

        assert not looked_at & {id(one) for one in standing}
    finally:
        gc.unfreeze()
