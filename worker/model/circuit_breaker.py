"""A circuit breaker per model: a model that failed is tried last for a while; sans-IO.

    closed     no recent failure: the route keeps its place
    open       failed less than the cooldown ago: the route is tried last
    half-open  the cooldown is over: one run tries the route, the others go on to the fallback

It only matters where a model has fallbacks. Without it every run would wait for the same connect
time-out again. Each process has its own state. A success closes the circuit.
"""

from collections.abc import Sequence
from typing import Final

from stagebus.shared.config.providers import ModelRoute

COOLDOWN_S: Final = 15.0
COOLDOWN_MAX_S: Final = 300.0
# At this number, half-open circuits are dropped.
OPEN_CIRCUITS_MAX: Final = 1000

# One circuit for each model of a provider: an overloaded model says nothing about the provider's other models.
_Key = tuple[str, str]


class CircuitBreaker:
    """Orders routes by their recent failures. All times are in seconds of the caller's monotonic clock."""

    def __init__(self) -> None:
        self._open_until: dict[_Key, float] = {}  # circuits that are not closed

    def order(self, routes: Sequence[ModelRoute], now: float) -> list[ModelRoute]:
        """Returns the routes with open circuits last. A half-open circuit that comes first is thereby on trial."""
        if len(routes) == 1 or not self._open_until:
            return list(routes)
        ordered = sorted(routes, key=lambda route: self._open_until.get(_key(route), now) > now)
        first = _key(ordered[0])
        if first in self._open_until:
            # Until the trial has its result, other runs see an open circuit.
            self._open_until[first] = max(self._open_until[first], now + COOLDOWN_S)
        return ordered

    def record_failure(self, route: ModelRoute, now: float, retry_after_s: float | None) -> None:
        """Opens the circuit for the cooldown, or for the provider's `Retry-After` if that is longer."""
        if len(self._open_until) >= OPEN_CIRCUITS_MAX:
            # With a wildcard model, clients choose the names.
            self._open_until = {key: until for key, until in self._open_until.items() if until > now}
        self._open_until[_key(route)] = now + min(max(COOLDOWN_S, retry_after_s or 0.0), COOLDOWN_MAX_S)

    def record_success(self, route: ModelRoute) -> None:
        """Closes the circuit."""
        self._open_until.pop(_key(route), None)


def _key(route: ModelRoute) -> _Key:
    return route.provider, route.model_id
