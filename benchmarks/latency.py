"""Latency of events: the publisher puts a timestamp into the data, and the browser's side reads it."""

import re
import time
from collections.abc import Sequence
from typing import Final

import orjson

STAGE: Final = "synthesis"
EVENT: Final = "tool_completion_chunk"
# A publisher's stamp, or the provider's, whose text it is.
_STAMP: Final = re.compile(rb'"(?:t"|content"):"? ?(\d+)')


def stamped() -> bytes:
    """Returns a model's chunk as the log stores it, with a timestamp; the same for us and the rivals."""
    delta = {"choices": [{"index": 0, "delta": {"content": " token"}}]}
    return orjson.dumps({"stage_id": STAGE, "tool_results": delta, "t": time.monotonic_ns()})


def latencies_ns(data: bytes, now_ns: int) -> list[int]:
    """Returns the age of each timestamped event in `data`."""
    return [now_ns - int(stamp) for stamp in _STAMP.findall(data)]


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the given percentile; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")
