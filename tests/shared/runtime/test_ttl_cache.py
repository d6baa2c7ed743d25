import pytest

from stagebus.shared.runtime.ttl_cache import TtlCache
from tests.support.fake_time import FakeTime


@pytest.fixture
def cache(cache_time: FakeTime) -> TtlCache[str, int]:
    return TtlCache(ttl_s=5, entries_max=3)


def test_ttl_cache_returns_a_value_until_it_expires(cache: TtlCache[str, int], cache_time: FakeTime) -> None:
    cache["a"] = 1
    cache_time.now += 4.9
    assert cache.get("a") == 1

    cache_time.now += 0.1
    assert cache.get("a") is None
    assert len(cache) == 0


def test_ttl_cache_reads_do_not_extend_the_ttl(cache: TtlCache[str, int], cache_time: FakeTime) -> None:
    cache["a"] = 1
    for _ in range(4):
        cache_time.now += 1
        assert cache.get("a") == 1

    cache_time.now += 1
    assert cache.get("a") is None


def test_ttl_cache_assignment_replaces_the_value_and_restarts_the_ttl(
    cache: TtlCache[str, int], cache_time: FakeTime
) -> None:
    cache["a"] = 1
    cache_time.now += 4
    cache["a"] = 2
    cache_time.now += 4

    assert cache.get("a") == 2
    assert len(cache) == 1


def test_ttl_cache_evicts_the_least_recently_used_entry(cache: TtlCache[str, int]) -> None:
    for number, key in enumerate("abc"):
        cache[key] = number
    cache.get("a")
    cache["d"] = 3

    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]
    assert len(cache) == 3


def test_ttl_cache_keeps_falsy_values_and_forgets_removed_ones(cache: TtlCache[str, int]) -> None:
    cache["a"] = 0
    assert cache.get("a") == 0

    cache.discard("a")
    cache.discard("never stored")
    assert cache.get("a") is None
