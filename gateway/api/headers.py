"""Headers that every answer has, unless its handler knows better.

Answers of the API are data and never a page; the page's own policy stands beside its handler.
Source: https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html
"""

from typing import Final

DEFAULTS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # a page's address may hold a run's id
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # what somebody may see is no proxy's to keep
}

# For clients of other origins, where STAGEBUS_CORS_ORIGINS names them.
CORS_METHODS: Final = ("GET", "POST", "DELETE")
CORS_ACCEPTED: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Request-ID",
    "traceparent",
)
CORS_EXPOSED: Final = (
    "Location",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "WWW-Authenticate",
    "X-Request-ID",
    "X-Run-Id",
    "X-Ping-S",
    "X-Last-Event-Id",
)
CORS_MAX_AGE_S: Final = 600
