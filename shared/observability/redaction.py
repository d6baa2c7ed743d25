"""Masks secrets in the texts of logs and messages.

    provider answered 401: Incorrect API key provided: ***
    ConnectionError at redis://***@redis.internal:6379/0

Masked are the secrets that this process has read, in every form in which they are written (plain, percent-encoded,
escaped), and whatever has the form of a credential: API keys, tickets and other JWTs, `Authorization` values, and the
user part of a URL. The known secrets belong to the process, as its logging does.
"""

import json
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus

from stagebus.shared.runtime.sanitize import sanitize

MASK: Final = "***"
# Masking a shorter secret, such as `demo`, would blank out ordinary words of the log.
SECRET_MIN_CHARS: Final = 6
# Keys in files may change any number of times while a process runs; the oldest are forgotten.
FORMS_MAX: Final = 2000

_CREDENTIALS: Final = re.compile(
    r"(?P<key>\bsbk_[0-9a-f]{12}_)[A-Za-z0-9_-]{16,}"
    r"|(?P<jwt>\beyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"
    r"|(?P<scheme>\b(?:[Bb]earer|[Bb]asic|BEARER|BASIC)\s+)(?=\S*\d)[A-Za-z0-9._~+/=-]{12,}"
    r"|(?P<url>://)[^\s/'\"<>]+(?=@)"
    r"|(?P<query>[?&](?:ticket|token|access_token|key|api[_-]?key|password|secret)=)[^&\s'\"]+"
)

# Texts with none of these contain no credential; most fields of a log line are such.
_MARKS: Final = ("sbk_", "eyJ", "://", "earer", "BEARER", "asic", "BASIC", "=")


class Redaction:
    """The secrets of a process, and the masking of texts."""

    def __init__(self) -> None:
        self._forms: dict[str, None] = {}
        self._known: re.Pattern[str] | None = None

    def remember(self, *secrets: str) -> None:
        """Masks these secrets from now on. Secrets of less than `SECRET_MIN_CHARS` characters are not masked."""
        new = [secret for secret in secrets if len(secret) >= SECRET_MIN_CHARS and secret not in self._forms]
        if not new:
            return
        # Built aside and then replaced, since other threads log meanwhile.
        forms = self._forms | dict.fromkeys(form for secret in new for form in _forms_of(secret))
        self._forms = dict.fromkeys(list(forms)[-FORMS_MAX:])
        self._known = re.compile("|".join(map(re.escape, sorted(self._forms, key=len, reverse=True))))

    def redact(self, text: str) -> str:
        """Returns the text with all secrets masked."""
        if len(text) < SECRET_MIN_CHARS:
            return text
        if self._known is not None:
            text = self._known.sub(MASK, text)
        if not any(mark in text for mark in _MARKS):
            return text
        return _CREDENTIALS.sub(lambda match: f"{match[match.lastgroup or 0]}{MASK}", text)


def _forms_of(secret: str) -> Iterator[str]:
    yield from (secret, quote(secret, safe=""), quote(secret), quote_plus(secret))
    yield from (repr(secret)[1:-1], json.dumps(secret)[1:-1])
    _, _, credential = secret.partition(" ")
    if len(credential) >= SECRET_MIN_CHARS:  # of a header such as `Bearer …`
        yield from _forms_of(credential)


_process: Final = Redaction()
remember: Final = _process.remember
redact: Final = _process.redact


def printable(text: str, keep: str = "") -> str:
    """Returns a text as it may be logged or printed: secrets masked, control characters visible except those in `keep`."""
    return sanitize(redact(text), keep)
