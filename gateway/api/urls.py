"""Builds the URLs that responses contain.

They are paths below `root_path`, the ASGI server's or the mounting app's prefix (`""` for none), so that they
are valid for clients of a mounted or proxied gateway.
Spec: https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope
"""

from typing import Final, NamedTuple
from urllib.parse import quote

from starlette.requests import Request

OPENAPI_PATH: Final = "/openapi.json"
PROBLEMS_PATH: Final = "/problems/"


class Urls(NamedTuple):
    """The URLs of a gateway below its prefix."""

    root_path: str = ""

    def run(self, run_id: str) -> str:
        """Returns the URL of a run."""
        return f"{self.root_path}/runs/{run_id}"

    def run_events(self, run_id: str) -> str:
        """Returns the URL of a run's event stream."""
        return f"{self.run(run_id)}/events"

    def stage_events(self, run_id: str, stage_id: str) -> str:
        """Returns the URL of a stage's event stream."""
        return f"{self.run(run_id)}/stages/{stage_id}/events"

    def cancel(self, run_id: str) -> str:
        """Returns the URL to which a client posts to cancel a run."""
        return f"{self.run(run_id)}/cancel"

    def approval(self, run_id: str, call_id: str) -> str:
        """Returns the URL to which a client posts the decision on a call."""
        # The id is the provider's own and may contain any character.
        return f"{self.run(run_id)}/approvals/{quote(call_id, safe='')}"

    def thread(self, thread_id: str, user: str = "") -> str:
        """Returns the URL of a thread. Args: `user`: whose thread it is, unless it is the caller's."""
        return f"{self.root_path}/threads/{quote(thread_id, safe='')}{_of_user(user)}"

    def thread_events(self, thread_id: str, user: str = "") -> str:
        """Returns the URL of a thread's event stream. Args: see `thread`."""
        return f"{self.thread(thread_id)}/events{_of_user(user)}"

    def call_result(self, run_id: str, call_id: str) -> str:
        """Returns the URL to which a client posts the result of a call."""
        return f"{self.run(run_id)}/calls/{quote(call_id, safe='')}/result"

    def events_with_ticket(self, run_id: str, ticket: str) -> str:
        """Returns the URL of a run's event stream for an `EventSource`, which cannot send headers."""
        return f"{self.run_events(run_id)}?ticket={ticket}"

    def page_with_ticket(self, run_id: str, ticket: str) -> str:
        """Returns the URL of the page that shows a run to the holder of a ticket."""
        # Browsers send no fragment, so no server and no proxy logs the ticket.
        return f"{self.root_path}/?run={run_id}#ticket={ticket}"

    def problem(self, code: str) -> str:
        """Returns the `type` of a problem."""
        return f"{self.root_path}{PROBLEMS_PATH}{code}"

    def openapi(self) -> str:
        """Returns the URL of the OpenAPI document."""
        return f"{self.root_path}{OPENAPI_PATH}"


def _of_user(user: str) -> str:
    return f"?user={quote(user, safe='')}" if user else ""


def urls_of(request: Request) -> Urls:
    """Returns the URLs for the client of this request."""
    return Urls(quote(request.scope.get("root_path", "").rstrip("/")))
