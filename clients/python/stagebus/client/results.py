"""What a run came to."""

from typing import Any, NamedTuple

from stagebus.client.errors import RunCancelled, RunFailed


class Result(NamedTuple):
    """A run that succeeded: its answer, its tokens, and the whole record as `GET /runs/{id}` gives it."""

    text: str
    usage: dict[str, int]
    run: dict[str, Any]


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
