"""Formats the explanation of a run, the answer of `GET /runs/{run_id}/explain`, as lines of text.

    run 01J9ZK3V7Q8E5W2R4T6Y8U0P1A: running
      +0.0 s  created for the model demo
      +2.0 s  taken by worker host:4711:9f3c21 after 2.0 s in the queue (attempt 2031)
    now:    waits for a slot of provider openai: all 4 are taken
    next:   a request to this provider ends, over all workers; or raise its concurrency_max

The wording is for people; programs read the JSON.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stagebus.shared.runtime.spoken_duration import spoken


def story_lines(explained: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a run's explanation."""
    yield f"run {explained['id']}: {explained['status']}"
    whens = [f"+{spoken(line['after_ms'])}" for line in explained["story"]]
    width = max(map(len, whens), default=0)
    for when, line in zip(whens, explained["story"], strict=True):
        yield f"  {when:>{width}}  {line['text']}"
    yield f"now:    {explained['now']}"
    yield f"next:   {explained['next']}"
