"""The ids of responses: `resp_<run id>`, and `resp_<run id>_2` and so on for the further parts of a run.

A part ends where the run waits for the outputs of function calls.
"""

import re
from typing import Final

from stagebus.shared.errors import RunNotFound

RESPONSE_PREFIX: Final = "resp_"

_PART: Final = re.compile(r"[1-9][0-9]{0,2}")


def response_id(run_id: str, part: int = 1) -> str:
    """Returns the id of a run's response; `part` is 1 for the first one."""
    return f"{RESPONSE_PREFIX}{run_id}" + (f"_{part}" if part > 1 else "")


def parse_part(text: str) -> int:
    """Returns the part of a run that a response's id names after the run's id; an empty text is the first one.

    Raises:
        RunNotFound: it is none.
    """
    if not text:
        return 1
    if not _PART.fullmatch(text) or text == "1":
        raise RunNotFound(text)
    return int(text)
