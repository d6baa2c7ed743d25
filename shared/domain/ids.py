"""Run ids. They are ULIDs, so they sort by creation time.

    01J9ZK3V7Q8E5W2R4T6Y8U0P1A
    |--------||--------------|
     time, ms     randomness

Spec: https://github.com/ulid/spec
"""

import re
from typing import Final

from ulid import ULID

PATTERN: Final = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
_RUN_ID: Final = re.compile(PATTERN)


def new_run_id() -> str:
    """Creates a run id by this machine's clock, which only affects the order of ids."""
    return str(ULID())


def is_run_id(text: str) -> bool:
    """Returns whether `text` has the form of a run id, and so is safe in a Redis key."""
    return _RUN_ID.fullmatch(text) is not None


def created_ms(run_id: str) -> int:
    """Returns the creation time in a run id, in Unix ms."""
    return ULID.from_str(run_id).milliseconds
