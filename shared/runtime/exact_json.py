"""Parses JSON strictly and exactly."""

import json
from typing import Any

import orjson


def parse_json(text: str) -> Any:
    """Parses JSON text and keeps integers of any size; orjson alone would round those of more than 64 bits.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    parsed = orjson.loads(text)  # the standard parser accepts NaN and lone surrogates
    try:
        orjson.dumps(parsed)  # writes 254 levels, and reads 1,024: the value must not fail where it is written
        return json.loads(text)
    except (RecursionError, TypeError) as exc:
        raise ValueError("nested too deeply") from exc
