"""This machine's clock, for display only. Decisions use the time of Redis or a monotonic clock."""

import time


def wall_ms() -> int:
    """Returns the current time in Unix ms."""
    return time.time_ns() // 1_000_000
