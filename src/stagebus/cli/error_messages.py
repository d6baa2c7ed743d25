"""Words errors for people at a command line: options instead of fields, commands instead of URLs, no HTTP."""

import re
from collections.abc import Mapping
from typing import Final

from stagebus.client.client_errors import InvalidRequest, Refused, Unavailable

_OPTION_BY_FIELD: Final[Mapping[str, str]] = {
    "user_prompt": "PROMPT", "system_prompt": "--system", "model": "--model", "tools": "--tool",
    "synthesis": "--no-synthesis", "max_rounds": "--max-rounds", "max_total_tokens": "--max-total-tokens",
    "timeout_s": "--timeout", "metadata": "--metadata", "limit": "--limit", "status": "--status", "q": "--search", "user": "--user",
    "arguments": "--arguments", "reason": "--reason", "text": "TEXT", "content": "TEXT",
    "ttl_s": "--expires", "last_event_id": "--from",
}  # fmt: skip
_WORDS_BY_PATTERN: Final[Mapping[str, str]] = {
    r"GET \S*/tools\b": "`stagebus tools`",
    r"GET \S*/models\b": "`stagebus models`",
    r"GET \S*/runs/(\S+) lists its pending_(?:approvals|calls)": r"`stagebus show \1` lists its pending calls",
    r"\banswered [1-5]\d\d: (.+)": r"answered: \1",
}
# Errors whose detail is for authors of HTTP clients.
_TEXT_BY_CODE: Final[Mapping[str, str]] = {
    "unauthenticated": "the gateway needs a valid key: set STAGEBUS_API_KEY, or `api_key` in config.toml",
    "user_required": "the key opens the runs of one user: name the user with STAGEBUS_USER, or `user` in config.toml",
    "internal": "the gateway failed unexpectedly; its log has the cause",
    "unavailable": "the gateway is temporarily unable to answer; try again later",
    "not_found": "the server at this address does not answer as a Stagebus gateway of this version; check --url",
}


def message_of(exc: BaseException) -> str:
    """Return the message for an expected error."""
    match exc:
        case UnicodeError():
            return "the text is not UTF-8"
        case InvalidRequest(fields=fields) if fields:
            faults = (f"{option_of(fault.get('field', ''))}: {fault.get('message', '')}" for fault in fields)
            return in_plain_words("; ".join(faults))
        case Refused() if not exc.code:  # the answer of a proxy or of another server
            return _TEXT_BY_CODE["unavailable" if isinstance(exc, Unavailable) else "not_found"]
        case Refused() if exc.code in _TEXT_BY_CODE:
            return _TEXT_BY_CODE[exc.code]
        case Refused(retry_after_s=wait_s) if wait_s is not None:
            return in_plain_words(str(exc)).replace("after Retry-After", f"in {wait_s:.0f} s")
        case _:
            return in_plain_words(str(exc))


def in_plain_words(text: str) -> str:
    """Replace HTTP in a gateway's text: requests such as `GET /tools` by the command that makes them, and statuses."""
    for pattern, words in _WORDS_BY_PATTERN.items():
        text = re.sub(pattern, words, text)
    return text


def option_of(field: str) -> str:
    """Return the option for a field of a request, such as `--tool` for `tools.0`; a field without one stays."""
    return _OPTION_BY_FIELD.get(field.partition(".")[0], field)
