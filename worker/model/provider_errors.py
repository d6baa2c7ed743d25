"""What a provider's failure means for the run, and what a client may read of it; sans-IO.

The provider's own words go to the log. A client reads ours: they name the HTTP status
and a known reason, never a key, an address or anything else out of the answer.
Spec: https://platform.openai.com/docs/guides/error-codes
"""

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from stagebus.shared.errors import ModelError, ModelRejected, ModelUnauthorized, ModelUnavailable

# Statuses below 500 that pass by themselves.
_PASSING: Final = frozenset({408, 409, 425, 429})
_UNAUTHORIZED: Final = frozenset({401, 403})

# Codes that providers share, in words that help whoever made the request.
_REASONS: Final[Mapping[str, str]] = {
    "content_filter": "its content filter refused the request",
    "content_policy_violation": "its content filter refused the request",
    "context_length_exceeded": "the conversation is too long for the model",
    "insufficient_quota": "the operator's quota is used up",
    "model_not_found": "it does not serve this model",
    "tool_use_failed": "the model called a tool in a way that does not hold",
}

# What servers call an error's words.
_MESSAGES: Final = ("message", "detail", "msg", "error_msg", "error_message")
_CODES: Final = ("code", "error_code")
_TYPES: Final = ("type", "error_type", "__type", "status")
_STATUSES: Final = ("status_code", "statusCode", "status", "code", "error_code")
# A code beside the usage, by which a server says that all is well (Spark).
_NO_FAULT_CODES: Final = (0, "0", 200, "200")
# MiniMax answers 200 to everything, and says in `base_resp` what it means.
# Spec: https://platform.minimax.io/docs/api-reference/errorcode
_MINIMAX_CODES: Final = {
    "1000": "server_error", "1001": "timeout", "1002": "rate_limit", "1004": "authentication_error", "1008": "insufficient_quota",
    "1024": "internal_error", "1033": "server_error", "1039": "rate_limit", "2049": "invalid_api_key",
}  # fmt: skip

_SOUNDS_PASSING: Final = re.compile(
    r"rate.?limit|request.?limit|too.?many|overload|server.?error|internal|unavailable|time.?d?.?out|timeout|capacity|busy|throttl"
    r"|exhausted|bad.?gateway|try.?again",
    re.IGNORECASE,
)
_SOUNDS_UNAUTHORIZED: Final = re.compile(r"auth|api.?key|permission|forbidden", re.IGNORECASE)


class ReportedError(NamedTuple):
    """An error as the provider words it: for the log, not for clients."""

    message: str
    code: str = ""
    type: str = ""
    status: int | None = None


def error_in_chunk(chunk: Mapping[str, Any]) -> ReportedError | None:
    """The error that stands where a chunk was due; None in an ordinary chunk."""
    error = chunk.get("error")
    if error:
        # Hugging Face's servers put what kind of error it is beside its words.
        return parse_error(error if isinstance(error, Mapping) else {**chunk, "message": error})
    if isinstance(chunk.get("errors"), list) and chunk["errors"]:
        return parse_error(chunk["errors"])
    verdict = chunk.get("base_resp")
    if isinstance(verdict, Mapping) and verdict.get("status_code"):
        code = _MINIMAX_CODES.get(str(verdict["status_code"]), "")
        return ReportedError(str(verdict.get("status_msg") or ""), code)
    if "choices" in chunk or chunk.get("code") in _NO_FAULT_CODES:
        return None
    if chunk.get("object") == "error" or chunk.get("type") == "error" or set(_MESSAGES) & chunk.keys():
        return parse_error(chunk)
    return None


def parse_error(error: object) -> ReportedError:
    """The error out of any shape that it comes in: OpenAI's object, a bare string, others' own fields."""
    if isinstance(error, list) and error:
        return parse_error(error[0])
    if not isinstance(error, Mapping):
        return ReportedError(str(error))
    inner = error.get("error")
    if isinstance(inner, Mapping):
        return parse_error(inner)
    status = next((s for s in map(error.get, _STATUSES) if _is_status(s)), None)
    return ReportedError(
        message=_said(error, _MESSAGES) or _said(error, ("error",)),
        code=_said(error, _CODES),
        type=_said(error, _TYPES),
        status=int(status) if status is not None else None,
    )


def _said(error: Mapping[str, Any], names: Iterable[str]) -> str:
    return str(next((error[name] for name in names if error.get(name)), ""))


def _is_status(value: object) -> bool:
    return isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)) is not None


def error_from_status(status: int, error: ReportedError, retry_after_s: float | None = None) -> ModelError:
    """The failure that an HTTP status stands for."""
    detail = f"the model's provider answered {_in_words(status, error)}"
    if status in _UNAUTHORIZED:
        return ModelUnauthorized(detail)
    if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ModelUnavailable(detail, retry_after_s)
    return ModelRejected(detail)


def error_from_report(error: ReportedError) -> ModelError:
    """The failure that an error inside a 200 stream stands for."""
    if error.status is not None:
        return error_from_status(error.status, error)
    reason = _REASONS.get(error.code)
    detail = "the model's provider broke off its answer with an error" + (f": {reason}" if reason else "")
    # A message may mention anything, so it counts only where nothing else says what happened.
    kind = f"{error.code} {error.type}".strip() or error.message
    if _SOUNDS_PASSING.search(kind):
        return ModelUnavailable(detail)
    if _SOUNDS_UNAUTHORIZED.search(kind):
        return ModelUnauthorized(detail)
    return ModelRejected(detail)


def _in_words(status: int, error: ReportedError) -> str:
    reason = _REASONS.get(error.code)
    if reason is None:
        try:
            reason = HTTPStatus(status).phrase.lower()
        except ValueError:
            return str(status)
    return f"{status}: {reason}"


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider wishes to be left alone; None where it says nothing usable.

    A date counts from the answer's own `Date`, so that no clock of ours matters.

    Spec: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            return float(text) * unit_s
    try:
        wait = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
    except (KeyError, TypeError, ValueError):
        return None
    return max(wait, timedelta()).total_seconds()
