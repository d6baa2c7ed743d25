"""Which models are down, as this process has seen it: they rest for a while and are asked last; sans-IO.

It matters only where a model has fallbacks. Without a memory each run would wait out the same
connect time-out; and with one for good a provider would never be asked again. So a rest ends by
itself, and then one run alone tries: the others go on to the fallback until that one has its answer.
"""

from collections.abc import Sequence
from typing import Final

from stagebus.shared.config.providers import ModelRoute

COOLDOWN_S: Final = 15.0
COOLDOWN_MAX_S: Final = 300.0
# Beyond this many models, those whose rest is over are forgotten.
OPEN_CIRCUITS_MAX: Final = 1000

# A model at a provider: one that is overloaded says nothing of its neighbours.
_Key = tuple[str, str]


class CircuitBreaker:
    """The models that failed, and until when each is asked last. Times are the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._until: dict[_Key, float] = {}

    def order(self, routes: Sequence[ModelRoute], now: float) -> list[ModelRoute]:
        """The routes, those that rest last. Who is put first out of a rest that is over is its one trial."""
        if len(routes) == 1 or not self._until:
            return list(routes)
        ordered = sorted(routes, key=lambda route: self._until.get(_key(route), now) > now)
        first = _key(ordered[0])
        if first in self._until:
            self._until[first] = max(self._until[first], now + COOLDOWN_S)
        return ordered

    def record_failure(self, route: ModelRoute, now: float, retry_after_s: float | None) -> None:
        """It was asked and gave nothing."""
        if len(self._until) >= OPEN_CIRCUITS_MAX:
            # Clients name models as they like where an operator serves any.
            self._until = {key: until for key, until in self._until.items() if until > now}
        self._until[_key(route)] = now + min(max(COOLDOWN_S, retry_after_s or 0.0), COOLDOWN_MAX_S)

    def record_success(self, route: ModelRoute) -> None:
        """It answered."""
        self._until.pop(_key(route), None)


def _key(route: ModelRoute) -> _Key:
    return route.provider, route.model_id
