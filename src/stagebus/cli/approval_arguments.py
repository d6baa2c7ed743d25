"""The arguments of a call that waits for approval: as a person sees them, and as a person writes them."""

import json
import math
from typing import Any, Final

from rich.cells import chop_cells

from stagebus.cli.exit_codes import UsageError
from stagebus.shared.runtime.json_text import duplicate_keys, pretty_json

_MARGIN: Final = "  "
_COLUMNS_MIN: Final = 10


def argument_lines(text: str, columns: int | None = None) -> list[str]:
    """Return all lines of a call's arguments, and a warning for each key that occurs twice.

    Args:
        text: JSON.
        columns: width of the window, to which long lines are wrapped; None wraps none.
    """
    lines = pretty_json(text).split("\n")
    lines += [f"! the key {json.dumps(key)} occurs twice; the last value counts" for key in duplicate_keys(text)]
    if columns is not None:
        width = max(columns - len(_MARGIN), _COLUMNS_MIN)
        lines = [part for line in lines for part in chop_cells(line, width) or [""]]
    return [_MARGIN + line for line in lines]


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse a call's arguments from JSON text, integers of any size included.

    Raises:
        UsageError: the text is not a JSON object, or a key occurs twice.
    """
    try:
        arguments = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"the arguments are not valid JSON: {exc}") from exc
    if not isinstance(arguments, dict):
        raise UsageError("the arguments must be a JSON object")
    if twice := duplicate_keys(text):
        raise UsageError(f"the arguments contain the key {twice[0]!r} twice")
    return arguments


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"the number {number} is too large")
    return value
