"""Builds the requests of threads; no I/O."""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict
from urllib.parse import quote

from stagebus.client.api_requests import ApiRequest, Json, list_params

ROOT: Final = "root"

OnActive = Literal["reject", "enqueue", "interrupt", "steer"]


def thread_path(thread_id: str) -> str:
    """Return the path of a thread, whose id may contain any character."""
    return f"/threads/{quote(thread_id, safe='')}"


def events_path(thread_id: str, *, until_idle: bool) -> str:
    """Return the path of a thread's event stream."""
    return f"{thread_path(thread_id)}/events" + ("?until=idle" if until_idle else "")


class ThreadFilters(TypedDict, total=False):
    """Filters of a list of threads; a thread must match all of them."""

    q: str  # part of the id, the title or a metadata value
    metadata: dict[str, str]


def list_threads(limit: int, before: str | None, filters: Mapping[str, Any]) -> ApiRequest:
    """List the threads that were active last, or those before a given one, that match the filters."""
    return ApiRequest("GET", "/threads", params=list_params(limit, before, filters))


def get_thread(thread_id: str, branch: str | None = None, before: str | None = None) -> ApiRequest:
    """Get one thread with a page of the messages of its current branch, or of the one that ends with a run."""
    given = {"branch": branch, "before": before}
    return ApiRequest("GET", thread_path(thread_id), params={name: text for name, text in given.items() if text})


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
