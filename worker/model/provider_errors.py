"""Maps a provider's failure to an error of the run; sans-IO.

The provider's own message goes to the log. Clients get our own message, which names the HTTP status
and a known reason, and never a key, an address or any other text from the provider's answer.
Spec: https://platform.openai.com/docs/guides/error-codes
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from stagebus.shared.errors import ModelError, ModelRejected, ModelUnauthorized, ModelUnavailable
from stagebus.worker.model.compat.error_shapes import ReportedError

# Statuses below 500 for which a retry may succeed.
_TRANSIENT: Final = frozenset({408, 409, 425, 429})
_UNAUTHORIZED: Final = frozenset({401, 403})

# Error codes that several providers share, each with a message that helps the client.
_REASONS: Final[Mapping[str, str]] = {
    "content_filter": "its content filter refused the request",
    "content_policy_violation": "its content filter refused the request",
    "context_length_exceeded": "the conversation is too long for the model",
    "insufficient_quota": "the operator's quota is used up",
    "bio_policy": "its safety policy refused the request",
    "misalignment_policy_violation": "its safety policy refused the request",
    "model_not_found": "it does not serve this model",
    "tool_use_failed": "the model's tool call was invalid",
}

_TRANSIENT_WORDS: Final = re.compile(
    r"rate.?limit|request.?limit|too.?many|overload|server.?error|internal|unavailable|time.?d?.?out|timeout|capacity|busy|throttl"
    r"|exhausted|bad.?gateway|try.?again|slow.?down|api.?error",
    re.IGNORECASE,
)
# Anthropic's and OpenAI's codes for money or credit that is used up.
_USED_UP: Final = re.compile(r"insufficient_quota|credit_balance|spend_limit|billing_error|billing_hard_limit")
_DELAY: Final = re.compile(r"try again in (\d{1,6}(?:\.\d{1,9})?) ?(ms|s)", re.IGNORECASE)
_UNAUTHORIZED_WORDS: Final = re.compile(r"auth|api.?key|permission|forbidden", re.IGNORECASE)


def error_from_status(
    status: int,
    error: ReportedError,
    retry_after_s: float | None = None,
    should_retry: bool | None = None,  # noqa: FBT001 - a header's value
) -> ModelError:
    """Maps an HTTP error status to an error of the run.

    Args:
        should_retry: the provider's own advice, if it gives any.
    """
    detail = f"the model's provider answered {_describe(status, error)}"
    if status in _UNAUTHORIZED:
        return ModelUnauthorized(detail)
    # A status below 200 ends no answer: what sent it is no API, or the connection carries something else.
    is_error_of_server = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status < HTTPStatus.OK
    is_transient = status in _TRANSIENT or is_error_of_server
    if _is_used_up(error) or not (is_transient if should_retry is None else should_retry):
        return ModelRejected(detail)
    return ModelUnavailable(detail, retry_after_s or parse_delay(error.message))


def _is_used_up(error: ReportedError) -> bool:
    """Returns whether a quota is used up. The status is then 429 as for a rate limit, but no retry helps."""
    return _USED_UP.search(f"{error.code} {error.type}") is not None


def error_from_report(error: ReportedError) -> ModelError:
    """Maps an error inside a 200 response to an error of the run."""
    if error.status is not None:
        return error_from_status(error.status, error)
    reason = _reason(error)
    detail = "the model's provider ended its answer with an error" + (f": {reason}" if reason else "")
    # A message may mention anything, so it only counts if there is neither a code nor a type.
    kind = f"{error.code} {error.type}".strip() or error.message
    if _is_used_up(error):
        return ModelRejected(detail)
    if _TRANSIENT_WORDS.search(kind):
        return ModelUnavailable(detail, parse_delay(error.message))
    if _UNAUTHORIZED_WORDS.search(kind):
        return ModelUnauthorized(detail)
    return ModelRejected(detail)


def _describe(status: int, error: ReportedError) -> str:
    reason = _reason(error)
    if reason is None:
        try:
            reason = HTTPStatus(status).phrase.lower()
        except ValueError:
            return str(status)
    return f"{status}: {reason}"


def _reason(error: ReportedError) -> str | None:
    """Returns a known reason of an error in words. Anthropic has no code for a conversation that is too long."""
    if error.message.startswith("prompt is too long"):
        return _REASONS["context_length_exceeded"]
    return _REASONS.get(error.code) or (_REASONS["insufficient_quota"] if _is_used_up(error) else None)


def parse_delay(message: str) -> float | None:
    """Returns the seconds in a message such as "Please try again in 11.054s", or None."""
    match = _DELAY.search(message)
    return None if match is None else float(match[1]) * (0.001 if match[2] == "ms" else 1.0)


def parse_should_retry(headers: Mapping[str, str]) -> bool | None:
    """Returns the provider's advice on a retry, or None if it gives none."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that the provider asks to wait, or None if there is no valid value.

    A date counts from the response's own `Date` header, so the local clock does not matter.

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
