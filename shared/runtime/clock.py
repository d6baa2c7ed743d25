"""This machine's own clock, for what people read. No decision rests on it: those take Redis's time or a monotonic one."""

import time


def wall_ms() -> int:
    """The time now, Unix ms."""
    return time.time_ns() // 1_000_000
