"""Builds the requests of threads; no I/O."""

from typing import Any, Final, Literal
from urllib.parse import quote

from stagebus.client.api_requests import ApiRequest, Json

ROOT: Final = "root"

OnActive = Literal["reject", "enqueue", "interrupt", "steer"]


def thread_path(thread_id: str) -> str:
    """Return the path of a thread, whose id may contain any character."""
    return f"/threads/{quote(thread_id, safe='')}"


def events_path(thread_id: str, *, until_idle: bool) -> str:
    """Return the path of a thread's event stream."""
    return f"{thread_path(thread_id)}/events" + ("?until=idle" if until_idle else "")


def list_threads(limit: int, before: str | None, user: str | None) -> ApiRequest:
    """List the threads that were active last, or those before a given one."""
    given = {"before": before, "user": user}
    return ApiRequest(
        "GET", "/threads", params={"limit": limit, **{name: text for name, text in given.items() if text is not None}}
    )


def get_thread(thread_id: str) -> ApiRequest:
    """Get one thread."""
    return ApiRequest("GET", thread_path(thread_id))


def get_transcript(thread_id: str) -> ApiRequest:
    """Get a thread's current branch as Markdown."""
    return ApiRequest("GET", thread_path(thread_id), headers={"Accept": "text/markdown"})


def update_thread(thread_id: str, title: str | None, metadata: dict[str, str] | None) -> ApiRequest:
    """Set the title of a thread, its metadata, or both."""
    given: Json = {"title": title, "metadata": metadata}
    return ApiRequest(
        "PATCH", thread_path(thread_id), {name: value for name, value in given.items() if value is not None}
    )


def delete_thread(thread_id: str) -> ApiRequest:
    """Delete a thread with all its runs."""
    return ApiRequest("DELETE", thread_path(thread_id))


def send_fields(thread_id: str, given: dict[str, Any], fields: dict[str, Any]) -> Json:
    """Return the body of the request for a run of a thread."""
    return {**fields, "thread_id": thread_id, **{name: value for name, value in given.items() if value is not None}}


def turn_of(thread: Json, run_id: str) -> Json:
    """Return a turn of a thread.

    Raises:
        ValueError: the thread has no such turn.
    """
    for turn in thread["turns"]:
        if turn["run_id"] == run_id:
            return dict(turn)
    raise ValueError(f"the thread has no turn of the run {run_id}")
