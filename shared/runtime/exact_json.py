"""Parses JSON strictly and exactly."""

import json
from typing import Any

import orjson


def parse_json(text: str) -> Any:
    """Parses JSON text and keeps integers of any size; orjson alone would round those of more than 64 bits.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    orjson.loads(text)  # the standard parser accepts NaN and lone surrogates
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
