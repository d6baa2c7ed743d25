"""Parses JSON strictly and exactly."""

import json
from typing import Any, Final

import orjson

# A longer text would hold an event loop for more than 50 ms each time that it is parsed.
PARSED_MAX_CHARS: Final = 2**20
# orjson writes so many levels, and reads 1,024.
DEPTH_MAX: Final = 254


def is_shallow(value: Any) -> bool:
    """Returns whether a parsed value has at most `DEPTH_MAX` levels, so that it can be written as well."""
    try:
        orjson.dumps(value)
    except TypeError as exc:  # also for an integer of more than 64 bits
        return "ecursion" not in str(exc)
    return True


def parse_json(text: str) -> Any:
    """Parses JSON text and keeps integers of any size; orjson alone would round those of more than 64 bits.

    Raises:
        ValueError: it is not JSON, is nested too deeply or has more than `PARSED_MAX_CHARS`.
    """
    if len(text) > PARSED_MAX_CHARS:
        raise ValueError(f"{len(text)} characters are too many, the limit is {PARSED_MAX_CHARS}")
    parsed = orjson.loads(text)  # the standard parser accepts NaN and lone surrogates
    if not is_shallow(parsed):  # it must not fail where it is written
        raise ValueError("nested too deeply")
    try:
        return json.loads(text)
    except RecursionError as exc:  # of a call that is deep in the stack itself
        raise ValueError("nested too deeply") from exc
