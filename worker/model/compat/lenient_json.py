r"""Parses JSON that a strict parser rejects but servers send; sans-IO.

{"logprobs": NaN}               a number that JSON does not have
{"content": "\ud83d"}           an emoji cut in two between two tokens
{"choices": …}{"choices": …}    two chunks on one line
"""

import json
import re
from typing import Any, Final

import orjson

_SPACE: Final = re.compile(r"\s*")
_DECODER: Final = json.JSONDecoder(parse_constant=lambda _: None)
_HALVES_MAX: Final = 100


class SurrogateJoiner:
    """Joins surrogate pairs that a server split over two chunks.

    The second half comes at the start of the same field of a later chunk; until then the first half
    is held back. Without its second half it is dropped.
    """

    def __init__(self) -> None:
        self._half_by_path: dict[tuple[str | int, ...], str] = {}

    def join(self, value: Any, path: tuple[str | int, ...] = ()) -> Any:
        """Returns the value with matching halves joined and a first half at the end of a string removed."""
        if isinstance(value, dict):
            return {name: self.join(item, (*path, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [self.join(item, (*path, place)) for place, item in enumerate(value)]
        if not isinstance(value, str) or not value:
            return value
        if "\udc00" <= value[0] <= "\udfff":
            value = self._half_by_path.pop(path, "") + value
        if "\ud800" <= value[-1] <= "\udbff" and len(self._half_by_path) < _HALVES_MAX:
            self._half_by_path[path] = value[-1]
            return value[:-1]
        return value


def loads_leniently(data: bytes, joiner: SurrogateJoiner) -> list[Any]:
    """Parses one or more JSON texts in a row with Python's own parser.

    The result can be encoded again: NaN becomes null, and half of a surrogate pair becomes U+FFFD or is dropped.

    Raises:
        ValueError: this is not JSON, or it is nested too deeply.
    """
    try:
        text = data.decode()
        values: list[Any] = []
        end = 0
        while end < len(text):
            value, end = _DECODER.raw_decode(text, end)
            values.append(joiner.join(value))
            end = _SPACE.match(text, end).end()  # type: ignore[union-attr]  # the pattern always matches
        text = json.dumps(values, ensure_ascii=False)
        loaded = orjson.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except RecursionError as exc:
        raise ValueError("the JSON is nested too deeply") from exc
    return list(loaded)
