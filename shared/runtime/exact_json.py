"""Parses JSON strictly and exactly."""

import json
from typing import Any, Final

import orjson

# A longer text would hold an event loop for more than 50 ms each time that it is parsed.
PARSED_MAX_CHARS: Final = 2**20


def parse_json(text: str) -> Any:
    """Parses JSON text and keeps integers of any size; orjson alone would round those of more than 64 bits.

    Raises:
        ValueError: it is not JSON, is nested too deeply or has more than `PARSED_MAX_CHARS`.
    """
    if len(text) > PARSED_MAX_CHARS:
        raise ValueError(f"{len(text)} characters are too many, the limit is {PARSED_MAX_CHARS}")
    parsed = orjson.loads(text)  # the standard parser accepts NaN and lone surrogates
    try:
        orjson.dumps(parsed)  # writes 254 levels, and reads 1,024: the value must not fail where it is written
        return json.loads(text)
    except (RecursionError, TypeError) as exc:
        raise ValueError("nested too deeply") from exc
