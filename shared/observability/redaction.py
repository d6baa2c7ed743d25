"""Masks secrets in the texts of logs and messages.

    provider answered 401: Incorrect API key provided: ***
    ConnectionError at redis://***@redis.internal:6379/0

Masked are the secrets that this process has read, in every form in which they are written (plain, percent-encoded,
escaped as in JSON, Python or HTML, Base64), and whatever has the form of a credential: API keys, tickets and other JWTs,
`Authorization` and `X-API-Key` values, and the user part of a URL. The known secrets belong to the process, as its logging
does.
"""

import base64
import re
from collections.abc import Iterator
from typing import Final

from stagebus.shared.runtime.sanitize import sanitize

MASK: Final = "***"
# Masking a shorter secret, such as `demo`, would blank out ordinary words of the log.
SECRET_MIN_CHARS: Final = 6
# Keys in files may change any number of times while a process runs; the oldest are forgotten.
FORMS_MAX: Final = 2000

_URL_SAFE: Final = str.maketrans("+/", "-_")
_ENTITIES: Final = {'"': "quot", "&": "amp", "'": "apos", "<": "lt", ">": "gt"}
_SHORT_ESCAPES: Final = {"\n": "n", "\r": "r", "\t": "t"}

# No word boundaries in front: in escaped text an `n` may precede, that of a line end.
_CREDENTIALS: Final = re.compile(
    r"(?P<key>sbk_[0-9a-f]{12}_)[A-Za-z0-9_-]{16,}"
    r"|(?P<jwt>eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"
    r"|(?P<header>(?i:(?:authorization|api-key)[\\\"']*\s*[:=,]\s*b?[\\\"']*(?:(?:basic|bearer|token)\s+)?))[^\s\\\"',]{8,}"
    r"|(?P<scheme>(?:[Bb]earer|[Bb]asic|BEARER|BASIC)\s+)(?=\S*\d)[A-Za-z0-9._~+/=-]{12,}"
    r"|(?P<url>:(?:\\*/){2})[^\s/'\"<>]+(?=@)"
    r"|(?P<encoded_url>(?i:%3A%2F%2F))(?:[^\s/'\"<>&%]|%(?!2[Ff]))+(?=%40)"
    r"|(?P<query>(?i:[?&](?:ticket|token|access_token|key|api[_-]?key|password|secret|client_secret)=))[^&\s'\"]+"
)

# Texts with none of these, in lower case, contain no credential; most fields of a log line are such.
_MARKS: Final = ("sbk_", "eyj", "//", ":\\", "%3a", "=", "bearer", "basic", "authorization", "api-key")


class Redaction:
    """The secrets of a process, and the masking of texts."""

    def __init__(self) -> None:
        self._patterns: dict[str, str] = {}  # by secret or an encoded form of it
        self._known: re.Pattern[str] | None = None

    def remember(self, *secrets: str) -> None:
        """Masks these secrets from now on. Secrets of less than `SECRET_MIN_CHARS` characters are not masked."""
        new = [secret for secret in secrets if len(secret) >= SECRET_MIN_CHARS and secret not in self._patterns]
        if not new:
            return
        # Built aside and then replaced, since other threads log meanwhile.
        patterns = self._patterns | {form: _pattern_of(form) for secret in new for form in _forms_of(secret)}
        self._patterns = dict(list(patterns.items())[-FORMS_MAX:])
        longest_first = sorted(self._patterns, key=len, reverse=True)
        self._known = re.compile("|".join(self._patterns[form] for form in longest_first))

    def redact(self, text: str) -> str:
        """Returns the text with all secrets masked."""
        if len(text) < SECRET_MIN_CHARS:
            return text
        if self._known is not None:
            text = self._known.sub(MASK, text)
        lowered = text.lower()
        if not any(mark in lowered for mark in _MARKS):
            return text
        return _CREDENTIALS.sub(lambda match: f"{match[match.lastgroup or 0]}{MASK}", text)


def _forms_of(secret: str) -> Iterator[str]:
    yield from _base64_forms_of(secret)
    _, _, credential = secret.partition(" ")
    if len(credential) >= SECRET_MIN_CHARS:  # of a header such as `Bearer …`
        yield from _forms_of(credential)
    yield secret


def _base64_forms_of(secret: str) -> Iterator[str]:
    """Yields what Base64 has of a secret, wherever in the encoded bytes it begins: a character may hold bits of its neighbours."""
    data = secret.encode(errors="replace")
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data)
        inner = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6].decode()
        yield inner
        yield inner.translate(_URL_SAFE)


def _pattern_of(text: str) -> str:
    """Returns a regular expression for all ways to write a text: everything but letters and digits may be encoded."""
    return "".join(c if c.isascii() and c.isalnum() else _character_pattern(c) for c in text)


def _character_pattern(character: str) -> str:
    """Returns a regular expression for a character that may be escaped, several times over; bounded, so linear in time."""
    code, utf8 = ord(character), character.encode(errors="replace")
    escapes = [f"x{code:02x}", *([_SHORT_ESCAPES[character]] if character in _SHORT_ESCAPES else [])]
    utf16 = [f"u{unit}" for unit in character.encode("utf-16-be", "replace").hex(" ", 2).split()]
    entities = [f"#{code}", f"#x0{{0,6}}{code:x}", *([_ENTITIES[character]] if character in _ENTITIES else [])]
    forms = [
        rf"\\{{0,8}}{re.escape(character)}",
        *(rf"\\{{1,8}}{escape}" for escape in escapes),
        "".join(rf"\\{{1,8}}{unit}" for unit in utf16),
        "".join(rf"\\{{1,8}}x{byte:02x}" for byte in utf8),
        "".join(f"%(?:25){{0,4}}{byte:02x}" for byte in utf8),
        f"&(?:{'|'.join(entities)});",
        *([r"\+"] if character == " " else []),
    ]
    return f"(?i:{'|'.join(forms)})"


_process: Final = Redaction()
remember: Final = _process.remember
redact: Final = _process.redact


def printable(text: str, keep: str = "") -> str:
    """Returns a text as it may be logged or printed: secrets masked, control characters visible except those in `keep`."""
    return sanitize(redact(text), keep)
