"""Parses durations on the command line, such as `90d`."""

import re
from typing import Final

import typer

_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float | None:
    """Parse `90d`, `12h`, `30m` or `45s` into seconds; an empty text into None.

    Raises:
        typer.BadParameter: the text is not a duration.
    """
    if not text:
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter("a duration is a number and a unit: 90d, 12h, 30m or 45s")
    return int(match[1]) * float(_UNIT_S[match[2]])
