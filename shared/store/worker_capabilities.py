"""Features that all workers must have before a gateway uses them; workers publish theirs in their heartbeats.

sb:workers   host:4711:9f3c21   {"capabilities": ["threads", "calls"], "concurrency": 10, "runs": []}

During an upgrade two versions work together. An older worker would execute a run of a thread without its history,
and end a run with client tools or deferred tools with `unknown_tools`.
"""

from typing import Final

from stagebus.shared.runtime.ttl_cache import TtlCache
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store import heartbeats

THREADS: Final = "threads"
# Calls that wait for a result from outside.
CALLS: Final = "calls"
# Of this version's workers.
CAPABILITIES: Final = (THREADS, CALLS)

# Within one heartbeat nothing changes.
_CACHED_S: Final = heartbeats.HEARTBEAT_S


class WorkerCapabilities:
    """Tells whether all workers that are alive have a feature."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: TtlCache[str, bool] = TtlCache(_CACHED_S, entries_max=len(CAPABILITIES))

    async def all_have(self, capability: str) -> bool:
        """Returns whether no live worker lacks the feature. If no worker is alive, runs wait for the next one."""
        known = self._known.get(capability)
        if known is None:
            workers = await heartbeats.read_live_processes(self._redis, keys.WORKERS)
            known = all(capability in worker.state.get("capabilities", ()) for worker in workers)
            self._known[capability] = known
        return known
