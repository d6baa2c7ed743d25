"""The result of a run, and tickets that share it."""

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from stagebus.client.client_errors import RunCancelled, RunFailed


class Result(NamedTuple):
    """A successful run: its answer, its tokens and cost, and the whole record as returned by `GET /runs/{id}`."""

    text: str
    usage: dict[str, Any]
    run: dict[str, Any]
    finish_reason: str | None = None  # such as `stop`, `length`, `content_filter` or `refusal`
    json: Any = None  # the answer's value, if the run asked for JSON by `response_format`


class Ticket(NamedTuple):
    """Read access to one run without a key."""

    id: str  # for `run.revoke_ticket(…)`
    text: str  # for `Stagebus(ticket=…)`
    expires_at: str
    page: str  # a link to the web page of the run
    events: str  # the URL of its event stream, for an EventSource


def parse_ticket(url: str, answer: dict[str, Any]) -> Ticket:
    """Parse a gateway's answer; the links become absolute below `url`, the client's base URL."""
    page, events = (_absolute(url, answer["links"][name]) for name in ("page", "events"))
    return Ticket(answer["id"], answer["ticket"], answer["expires_at"], page, events)


def _absolute(url: str, link: str) -> str:
    # A mounted gateway's links contain its prefix, as the base URL does. Behind a proxy that strips the prefix
    # without telling the gateway they do not.
    prefix = urlsplit(url).path
    return url.removesuffix(prefix) + link if link.startswith(f"{prefix}/") else url + link


def parse_result(run: dict[str, Any]) -> Result:
    """Extract the result from a run's record.

    Raises:
        RunFailed: the run ended with an error, or has not ended.
        RunCancelled: the run was cancelled.
    """
    result = run["result"] or {"text": ""}
    if run["status"] == "cancelled":
        raise RunCancelled(run["id"], run.get("cancel_reason"), result["text"])
    if run["status"] != "succeeded":
        error = run["error"] or {"error": f"run {run['id']} is {run['status']}", "code": run["status"]}
        raise RunFailed(error, result["text"])
    return Result(result["text"], run["usage"] or {}, run, result.get("finish_reason"), result.get("json"))
