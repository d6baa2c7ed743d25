"""A bounded in-memory cache: entries expire after a fixed time, and the least recently used one makes room."""

import time
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class TtlCache(Generic[K, V]):
    """A TTL cache with LRU eviction, for one event loop. None cannot be a value: `get` returns it for a miss."""

    def __init__(self, ttl_s: float, entries_max: int) -> None:
        self._ttl_s = ttl_s
        self._entries_max = entries_max
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Returns the key's value, or None if there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires_at, value = entry
        if time.monotonic() >= expires_at:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        """Stores a value, which expires `ttl_s` from now however often it is read."""
        self._entries[key] = (time.monotonic() + self._ttl_s, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

    def discard(self, key: K) -> None:
        """Removes the key's value, if there is one."""
        self._entries.pop(key, None)
