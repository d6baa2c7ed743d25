"""Who is asked first while somebody is down."""

import pytest

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.worker.model.circuit_breaker import REST_MAX_S, REST_S, CircuitBreaker

A, B, C = (ModelRoute(name, "p", name, Abilities(), {}) for name in "abc")


@pytest.fixture
def rests() -> CircuitBreaker:
    rests = CircuitBreaker()
    rests.fail(A, now=100, retry_after_s=None)
    return rests


def test_who_failed_is_asked_last_for_a_while(rests: CircuitBreaker) -> None:
    assert rests.order([A, B, C], 100 + REST_S - 1) == [B, C, A]


def test_after_its_rest_one_run_alone_tries(rests: CircuitBreaker) -> None:
    """The others do not wait out the same time-out, and once it answered all come back."""
    after = 100 + REST_S

    assert rests.order([A, B], after) == [A, B]
    assert rests.order([A, B], after) == [B, A]
    rests.succeed(A)
    assert rests.order([A, B], after) == [A, B]


def test_where_all_rest_all_are_asked_in_their_order(rests: CircuitBreaker) -> None:
    rests.fail(B, now=100, retry_after_s=None)

    assert rests.order([A, B], 101) == [A, B]


def test_only_one_is_asked_whatever_it_did(rests: CircuitBreaker) -> None:
    assert rests.order([A], 100) == [A]


@pytest.mark.parametrize(("retry_after_s", "rest_s"), [(1, REST_S), (60, 60), (10_000, REST_MAX_S)])
def test_rest_is_as_long_as_the_provider_asks_within_bounds(retry_after_s: float, rest_s: float) -> None:
    rests = CircuitBreaker()
    rests.fail(A, now=0, retry_after_s=retry_after_s)

    assert rests.order([A, B], rest_s - 0.1) == [B, A]
    assert rests.order([A, B], rest_s) == [A, B]
