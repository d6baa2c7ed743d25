"""What a tool gave back, as the text that the model is told; sans-IO."""

from typing import Any, Final, NamedTuple

import orjson
from pydantic_core import to_json, to_jsonable_python

# A cut result needs room for the mark that says so.
RESULT_MIN_BYTES: Final = 256

_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_NAIVE_UTC


class ToolReply(NamedTuple):
    """A call's outcome. An error is told to the model, too: it may do better, or say so."""

    content: str
    is_error: bool = False


def encode_result(name: str, result: Any, max_bytes: int) -> ToolReply:
    """A function's result: text as it is, anything else as JSON; cut where it is too long."""
    if isinstance(result, ToolReply):
        return ToolReply(cut(result.content, max_bytes), result.is_error)
    if isinstance(result, str):
        return ToolReply(cut(result, max_bytes))
    try:
        return ToolReply(cut(_to_json(result), max_bytes))
    except (TypeError, ValueError, RecursionError):
        kind = type(result).__name__
        text = f"{name} gave a {kind}, which cannot be written as JSON. As text it is: {_as_text(result)}"
        return ToolReply(cut(text, max_bytes), is_error=True)


def _to_json(result: Any) -> bytes:
    try:
        return orjson.dumps(result, default=to_jsonable_python, option=_OPTIONS)
    except TypeError:
        # A number beyond 64 bits, for one: pydantic can write more, at several times the cost.
        return to_json(result, inf_nan_mode="null")


def _as_text(result: object) -> str:
    try:
        return str(result)
    except Exception as exc:  # noqa: BLE001 - a stranger's __str__ may raise anything
        return f"({type(exc).__name__})"


def cut(text: str | bytes, max_bytes: int) -> str:
    """The text, or as much of its beginning as fits before a mark that tells of the rest."""
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    if len(raw) <= max_bytes:
        return raw.decode()
    mark = f"… [cut: {len(raw)} bytes, limit {max_bytes}]"
    return raw[: max_bytes - len(mark.encode())].decode(errors="ignore") + mark
