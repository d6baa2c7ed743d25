"""How late an event comes: the stamp that its publisher sets into its data, read back by the browser's side."""

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
    """A model's chunk as the log keeps it, and when it was made; the same for us and for the rivals."""
    delta = {"choices": [{"index": 0, "delta": {"content": " token"}}]}
    return orjson.dumps({"stage_id": STAGE, "tool_results": delta, "t": time.monotonic_ns()})


def latencies_ns(data: bytes, now_ns: int) -> list[int]:
    """How old each stamped event in `data` is."""
    return [now_ns - int(stamp) for stamp in _STAMP.findall(data)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed; NaN where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")
