"""What a run came to, and what shows it to others."""

from typing import Any, NamedTuple

from stagebus.client.client_errors import RunCancelled, RunFailed


class Result(NamedTuple):
    """A run that succeeded: its answer, its tokens and cost, and the whole record as `GET /runs/{id}` gives it."""

    text: str
    usage: dict[str, Any]
    run: dict[str, Any]


class Ticket(NamedTuple):
    """A way to look at one run without a key."""

    id: str  # for `run.revoke_ticket(…)`
    text: str  # for `Stagebus(ticket=…)`
    expires_at: str
    page: str  # a link to the page that shows the run
    events: str  # its stream, for an EventSource


def ticket_of(url: str, answer: dict[str, Any]) -> Ticket:
    """The ticket out of a gateway's answer, its links from `url` on."""
    links = answer["links"]
    return Ticket(answer["id"], answer["ticket"], answer["expires_at"], url + links["page"], url + links["events"])


def result_of(run: dict[str, Any]) -> Result:
    """The result out of a run's record.

    Raises:
        RunFailed: it ended with an error.
        RunCancelled: it was cancelled.
    """
    if run["status"] == "cancelled":
        raise RunCancelled(run["id"])
    if run["result"] is None:
        raise RunFailed(run["error"] or {"error": f"run {run['id']} is {run['status']}", "code": run["status"]})
    return Result(run["result"]["text"], run["usage"] or {}, run)
