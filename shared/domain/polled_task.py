"""Codec of the tasks at tool servers whose results are polled, and the times at which they are polled. Sans-IO.

A task is the member of a sorted set, so equal tasks have equal texts.
"""

from typing import Final, Self

import orjson
from pydantic import BaseModel, ConfigDict

# The limits of the interval that a server asks for, and the interval for one that asks for none.
POLL_MIN_S: Final = 1.0
POLL_MAX_S: Final = 3600.0
POLL_DEFAULT_S: Final = 2.0
# The interval is at least this share of the time that the task has taken, up to a limit. So a task that takes a week is
# looked at 11,000 times at most, however short an interval its server wants.
AGE_SHARE: Final = 0.01
AGE_INTERVAL_MAX_S: Final = 60.0
# The wait after a look that failed because the server could not be asked.
FAILED_LOOK_S: Final = 5.0
# A task is looked at once more when its call has expired, which cancels it. If that fails for this time, it is given up.
CANCEL_MAX_S: Final = 3600.0
_AFTER_EXPIRY_S: Final = 1.0


class PolledTask(BaseModel):
    """A task that is the rest of a call.

    Attributes:
        ref: the id of the event that completed the model's answer with the call.
        source: the name of the tool source.
        task_id: by which the source's server knows the task.
        worker: the worker that began it. Only its connection knows the task if the server binds tasks to sessions.
        began_at, expires_at: Unix ms by Redis's clock.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    ref: str
    call_id: str
    source: str
    task_id: str
    worker: str
    began_at: int
    expires_at: int

    def encode(self) -> str:
        """Encodes the task."""
        return orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        """Decodes a task; the inverse of `encode`."""
        return cls.model_validate_json(text)

    def next_look_at(self, now_ms: int, asked_s: float | None, least_s: float = POLL_MIN_S) -> int:
        """Returns when to look at the task again, Unix ms.

        Args:
            asked_s: the interval that the server asks for.
            least_s: the shortest interval.
        """
        asked_s = POLL_DEFAULT_S if asked_s is None else asked_s
        aged_s = min(AGE_SHARE * (now_ms - self.began_at) / 1000, AGE_INTERVAL_MAX_S)
        interval_s = max(least_s, aged_s, min(asked_s, POLL_MAX_S))
        end_ms = self.expires_at + round(1000 * _AFTER_EXPIRY_S)
        next_ms = now_ms + round(1000 * interval_s)
        return min(next_ms, end_ms) if now_ms < end_ms else next_ms

    def is_given_up(self, now_ms: int) -> bool:
        """Returns whether nothing more is done about the task."""
        return now_ms > self.expires_at + 1000 * CANCEL_MAX_S
