"""The order of routes after failures."""

import pytest

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.worker.model.circuit_breaker import COOLDOWN_MAX_S, COOLDOWN_S, CircuitBreaker

A, B, C = (ModelRoute(name, "p", name, Abilities(), {}) for name in "abc")


@pytest.fixture
def breaker() -> CircuitBreaker:
    breaker = CircuitBreaker()
    breaker.record_failure(A, now=100, retry_after_s=None)
    return breaker


def test_open_circuit_puts_the_route_last(breaker: CircuitBreaker) -> None:
    assert breaker.order([A, B, C], 100 + COOLDOWN_S - 1) == [B, C, A]


def test_half_open_circuit_allows_one_trial(breaker: CircuitBreaker) -> None:
    """The others avoid the same time-out. Once the trial succeeds, the circuit is closed for all."""
    after = 100 + COOLDOWN_S

    assert breaker.order([A, B], after) == [A, B]
    assert breaker.order([A, B], after) == [B, A]
    breaker.record_success(A)
    assert breaker.order([A, B], after) == [A, B]


def test_all_circuits_open_keeps_the_order(breaker: CircuitBreaker) -> None:
    breaker.record_failure(B, now=100, retry_after_s=None)

    assert breaker.order([A, B], 101) == [A, B]


def test_single_route_ignores_its_circuit(breaker: CircuitBreaker) -> None:
    assert breaker.order([A], 100) == [A]


@pytest.mark.parametrize(("retry_after_s", "cooldown_s"), [(1, COOLDOWN_S), (60, 60), (10_000, COOLDOWN_MAX_S)])
def test_cooldown_follows_retry_after_within_bounds(retry_after_s: float, cooldown_s: float) -> None:
    breaker = CircuitBreaker()
    breaker.record_failure(A, now=0, retry_after_s=retry_after_s)

    assert breaker.order([A, B], cooldown_s - 0.1) == [B, A]
    assert breaker.order([A, B], cooldown_s) == [A, B]
