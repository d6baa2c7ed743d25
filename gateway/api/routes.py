"""The gateway's URLs: every path is written here and nowhere else.

/runs                                    POST  create          GET  list
/runs/{run_id}                                                 GET  one run
/runs/{run_id}/events                                          GET  its stream
/runs/{run_id}/stages/{stage_id}/events                        GET  one stage's stream
/runs/{run_id}/cancel                    POST  cancel
/runs/{run_id}/approvals/{call_id}       POST  decide
/runs/{run_id}/ticket                    POST  a ticket to look at it
/runs/{run_id}/ticket/{ticket_id}        DELETE  take it back
/session                                 POST  begin           GET  who one is     DELETE  end
/tools  /models                                                GET  what a run may name
/healthz  /readyz  /metrics  /stats                            GET  operation
/schema/events.json  /openapi.json  /problems/{code}           GET  description
/  /static/{path}                                              GET  the page
"""

from typing import Final
from urllib.parse import quote

RUNS: Final = "/runs"
RUN: Final = "/runs/{run_id}"
RUN_EVENTS: Final = "/runs/{run_id}/events"
STAGE_EVENTS: Final = "/runs/{run_id}/stages/{stage_id}/events"
RUN_CANCEL: Final = "/runs/{run_id}/cancel"
RUN_APPROVAL: Final = "/runs/{run_id}/approvals/{call_id}"
# As Starlette matches it: a call's id is the provider's own, and may hold a slash.
RUN_APPROVAL_ROUTE: Final = "/runs/{run_id}/approvals/{call_id:path}"
RUN_TICKET: Final = "/runs/{run_id}/ticket"
RUN_TICKET_ONE: Final = "/runs/{run_id}/ticket/{ticket_id}"
SESSION: Final = "/session"
TOOLS: Final = "/tools"
MODELS: Final = "/models"
HEALTH: Final = "/healthz"
READY: Final = "/readyz"
METRICS: Final = "/metrics"
STATS: Final = "/stats"
EVENT_SCHEMA: Final = "/schema/events.json"
OPENAPI: Final = "/openapi.json"
PROBLEM: Final = "/problems/{code}"
PAGE: Final = "/"
STATIC: Final = "/static/{path:path}"

# What answers with a stream; a browser's EventSource gives up for good at any error.
STREAMS: Final = frozenset({RUN_EVENTS, STAGE_EVENTS})

# What machines ask every few seconds; its access lines would bury the others.
PROBES: Final = frozenset({HEALTH, READY, METRICS})


def run_url(run_id: str) -> str:
    """A run's own URL, which `Location` names."""
    return RUN.format(run_id=run_id)


def problem_url(code: str) -> str:
    """The `type` of a problem."""
    return PROBLEM.format(code=code)


def run_links(run_id: str) -> dict[str, str]:
    """Where a client goes on from a run: the fields of `schemas.RunLinks`."""
    return {
        "self": run_url(run_id),
        "events": RUN_EVENTS.format(run_id=run_id),
        "cancel": RUN_CANCEL.format(run_id=run_id),
    }


def approval_url(run_id: str, call_id: str) -> str:
    """Where a call is decided upon."""
    return RUN_APPROVAL.format(run_id=run_id, call_id=quote(call_id, safe=""))


def ticket_links(run_id: str, ticket: str) -> dict[str, str]:
    """Where a ticket leads: the fields of `schemas.TicketLinks`."""
    return {
        "events": f"{RUN_EVENTS.format(run_id=run_id)}?ticket={ticket}",
        # Behind the #, which browsers keep to themselves: no server and no proxy logs it.
        "page": f"{PAGE}?run={run_id}#ticket={ticket}",
    }


def stage_events_url(run_id: str, stage_id: str) -> str:
    """One stage's stream."""
    return STAGE_EVENTS.format(run_id=run_id, stage_id=stage_id)
