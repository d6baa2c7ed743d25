"""Encodes the result of a tool as text for the model, and cuts texts that are too long; sans-IO."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from pydantic_core import to_json, to_jsonable_python

# Descriptions cost tokens in every request.
DESCRIPTION_MAX_BYTES: Final = 8 * 2**10
# A cut result needs room for the mark.
RESULT_MIN_BYTES: Final = 256

_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_NAIVE_UTC


class ToolReply(NamedTuple):
    """The result of a call. The model gets errors, too, so that it can correct the call or report the failure."""

    content: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Deferred:
    """Returned by a tool that has started something which will give the call's result, with `ToolContext.call_token`.

    Attributes:
        expires_in: seconds until the call gets an error as its result; default: STAGEBUS_CALL_WAIT_S. More than a week, or than
            `live_ttl_s`, counts as that.
    """

    expires_in: float | None = None

    def __post_init__(self) -> None:
        if self.expires_in is not None and not self.expires_in > 0:
            raise ValueError(f"expires_in is {self.expires_in}; it must be more than 0 s")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTask(Deferred):
    """Returned for a call that a tool source runs as a task of its server. The result comes by asking the server.

    Attributes:
        source: the name of the tool source.
        task_id: by which the server knows the task.
        poll_s: the interval at which the server wants to be asked, if it says so.
    """

    source: str
    task_id: str
    poll_s: float | None = None


def encode_result(name: str, result: Any, max_bytes: int) -> ToolReply | Deferred:
    """Encodes a result: text unchanged, any other value as JSON. Cuts it if it is too long."""
    if isinstance(result, Deferred):
        return result
    if isinstance(result, ToolReply):
        return ToolReply(cut(result.content, max_bytes), result.is_error)
    if isinstance(result, str):
        return ToolReply(cut(result, max_bytes))
    try:
        return ToolReply(cut(_to_json(result), max_bytes))
    except (TypeError, ValueError, RecursionError):
        kind = type(result).__name__
        text = f"{name} returned a value of type {kind}, which has no JSON form. As text it is: {_as_text(result)}"
        return ToolReply(cut(text, max_bytes), is_error=True)


def _to_json(result: Any) -> bytes:
    try:
        return orjson.dumps(result, default=to_jsonable_python, option=_OPTIONS)
    except TypeError:
        # For example an integer beyond 64 bits: pydantic supports more types, at several times the cost.
        return to_json(result, inf_nan_mode="null")


def _as_text(result: object) -> str:
    try:
        return str(result)
    except Exception as exc:  # noqa: BLE001 - a user's __str__ may raise anything
        return f"({type(exc).__name__})"


def cut(text: str | bytes, max_bytes: int) -> str:
    """Returns the text, or its beginning and a mark if it is longer than `max_bytes`."""
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    if len(raw) <= max_bytes:
        return raw.decode()
    mark = f"… [cut: {len(raw)} bytes, limit {max_bytes}]"
    return raw[: max_bytes - len(mark.encode())].decode(errors="ignore") + mark
