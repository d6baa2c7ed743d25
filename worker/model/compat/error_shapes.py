"""Parses the error objects that providers send, in all their shapes; sans-IO.

{"error": {"message": "…", "type": "server_error", "code": null}}     OpenAI
{"error": "Input validation error", "error_type": "validation"}       Hugging Face
{"base_resp": {"status_code": 1002, "status_msg": "…"}}               MiniMax
{"object": "error", "message": "…", "code": 400}                      vLLM
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

# The fields in which servers put an error's parts; the first one with a value counts.
_MESSAGE_FIELDS: Final = ("message", "detail", "msg", "error_msg", "error_message")
_CODE_FIELDS: Final = ("code", "error_code")
_TYPE_FIELDS: Final = ("type", "error_type", "__type", "status")
_STATUS_FIELDS: Final = ("status_code", "statusCode", "status", "code", "error_code")
# Spark sends a code beside the usage even when there is no error.
_SUCCESS_CODES: Final = (0, "0", 200, "200")
_FAILURE_TYPE: Final = re.compile(
    r"error|exception|fail|invalid|denied|forbidden|unauthori|not.?found|limit|quota|exceeded|overload|unavailable"
    r"|time.?out|blocked|about:",  # RFC 9457: about:blank
    re.IGNORECASE,
)
# MiniMax answers every request with 200 and puts the real status into `base_resp`.
# Spec: https://platform.minimax.io/docs/api-reference/errorcode
_MINIMAX_CODES: Final = {
    "1000": "server_error", "1001": "timeout", "1002": "rate_limit", "1004": "authentication_error", "1008": "insufficient_quota",
    "1024": "internal_error", "1033": "server_error", "1039": "rate_limit", "2049": "invalid_api_key",
}  # fmt: skip


class ReportedError(NamedTuple):
    """An error in the provider's words. It goes to the log, never to clients."""

    message: str
    code: str = ""
    type: str = ""
    status: int | None = None
    param: str = ""


def error_in_chunk(chunk: Mapping[str, Any]) -> ReportedError | None:
    """Returns the error that a server sent in place of a chunk, or None for an ordinary chunk."""
    error = chunk.get("error")
    if error:
        # Hugging Face's servers put the kind of the error beside its message.
        return parse_error(error if isinstance(error, Mapping) else {**chunk, "message": error})
    if isinstance(chunk.get("errors"), list) and chunk["errors"]:
        return parse_error(chunk["errors"])
    base_resp = chunk.get("base_resp")
    if isinstance(base_resp, Mapping) and base_resp.get("status_code"):
        code = _MINIMAX_CODES.get(str(base_resp["status_code"]), "")
        return ReportedError(str(base_resp.get("status_msg") or ""), code)
    if chunk.get("choices") is not None or chunk.get("code") in _SUCCESS_CODES:
        return None
    is_error = chunk.get("object") == "error" or chunk.get("type") == "error"
    has_message = any(chunk.get(name) for name in _MESSAGE_FIELDS)
    return parse_error(chunk) if is_error or (has_message and not _is_note(chunk)) else None


def _is_note(chunk: Mapping[str, Any]) -> bool:
    """Returns whether a message is not an error's: it has a type, such as "ping", that names no failure."""
    kind = chunk.get("type") or chunk.get("event") or chunk.get("object")
    error = parse_error(chunk)
    has_code = error.status is not None or bool(error.code)
    return isinstance(kind, str) and not has_code and _FAILURE_TYPE.search(kind) is None


def parse_error(error: object) -> ReportedError:
    """Parses an error of any shape: OpenAI's object, a bare string, a list, or an object with other fields."""
    if isinstance(error, list) and error:
        return parse_error(error[0])
    if not isinstance(error, Mapping):
        return ReportedError(str(error))
    inner = error.get("error")
    if isinstance(inner, Mapping):
        return parse_error(inner)
    status = next((s for s in map(error.get, _STATUS_FIELDS) if _is_error_status(s)), None)
    details = error.get("details")  # Anthropic's
    return ReportedError(
        message=_first_value(error, _MESSAGE_FIELDS) or _first_value(error, ("error",)),
        code=_first_value(error, _CODE_FIELDS)
        or (_first_value(details, _CODE_FIELDS) if isinstance(details, Mapping) else ""),
        type=_first_value(error, _TYPE_FIELDS),
        status=int(status) if status is not None else None,
        param=_first_value(error, ("param",)),
    )


def _first_value(error: Mapping[str, Any], names: Iterable[str]) -> str:
    return str(next((error[name] for name in names if error.get(name)), ""))


def _is_error_status(value: object) -> bool:
    return isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)) is not None
