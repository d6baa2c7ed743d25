"""Default headers of every response, and the headers that CORS allows.

API responses are data and never rendered as a page; the page sets its own policy in `page_endpoints.py`.
Source: https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html
"""

from typing import Final

DEFAULTS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the page's address may contain a run id
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # responses depend on the caller, so no proxy may keep them
}

# The header with the id of the run that a response is about, and the key of that id in the request's state.
RUN_ID: Final = "X-Run-Id"
SHOWN_RUN: Final = "shown_run_id"

# For browser clients of the origins in STAGEBUS_CORS_ORIGINS.
CORS_METHODS: Final = ("GET", "HEAD", "POST", "PATCH", "DELETE")
# Every header that a page asks for: an observability library adds its own, and no header of a page without cookies
# gives it more access than any other client has.
CORS_ACCEPTED: Final = ("*",)
CORS_EXPOSED: Final = (
    "Location",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "WWW-Authenticate",
    "Preference-Applied",
    "X-Request-ID",
    "X-Run-Id",
    "X-Ping-S",
    "X-Last-Event-Id",
    # of views in other protocols
    "X-Workflow-Run-Id",
    "X-Workflow-Stream-Tail-Index",
    "Stream-Next-Offset",
    "Stream-Up-To-Date",
    "Stream-Closed",
    "Stream-Cursor",
    "ETag",
)
CORS_MAX_AGE_S: Final = 600
