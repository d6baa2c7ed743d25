"""Builds the requests of the API, reads their answers and decides on retries; no I/O."""

import os
import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypedDict
from urllib.parse import quote
from uuid import uuid4

import httpx

from stagebus.client.client_errors import BadKey, BadUserName, Refused
from stagebus.shared.domain.tenants import is_user
from stagebus.shared.runtime.net import is_loopback

URL_DEFAULT: Final = "http://127.0.0.1:8000"
CONNECT_MAX_S: Final = 5.0
ANSWER_MAX_S: Final = 15.0
TRIES_MAX: Final = 4
# Names the person within the tenant for whom a request is made.
USER_HEADER: Final = "Stagebus-User"
RETRY_S: Final = 0.25
RETRY_AFTER_MAX_S: Final = 30.0

# Temporary errors: the same request may be sent again.
RETRYABLE_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

Json = dict[str, Any]


class RunFields(TypedDict, total=False):
    """The body of POST /runs; the gateway's /openapi.json documents each field."""

    model: str | dict[str, str]
    user_prompt: str
    system_prompt: str
    messages: list[Json]
    tools: list[str | Json]
    tool_choice: str | Json
    parallel_tool_calls: bool
    synthesis: bool
    max_tokens: int | list[int | None]
    temperature: float | list[float | None]
    top_p: float | list[float | None]
    stop: str | list[str] | list[list[str] | None]
    seed: int | list[int | None]
    reasoning_effort: str | list[str | None]
    verbosity: str | list[str | None]
    service_tier: str | list[str | None]
    response_format: Json
    max_total_tokens: int
    max_rounds: int
    timeout_s: float
    metadata: dict[str, str]


class RunFilters(TypedDict, total=False):
    """Filters of a list of runs; a run must match all of them."""

    status: str | list[str]
    model: str
    q: str  # the beginning of the id, or part of the prompt or of a metadata value
    metadata: dict[str, str]
    user: str


class ApiRequest(NamedTuple):
    """One request, which is safe to send again.

    Attributes:
        wait_s: how long the gateway may hold the answer.
    """

    method: str
    path: str
    json: Json | None = None
    params: Mapping[str, str | int] = {}
    headers: Mapping[str, str] = {}
    wait_s: int = 0

    @property
    def timeout(self) -> httpx.Timeout:
        """How long to wait for the answer."""
        return httpx.Timeout(ANSWER_MAX_S + self.wait_s, connect=CONNECT_MAX_S)


def create_run(fields: Mapping[str, Any], idempotency_key: str | None, wait_s: int = 0) -> ApiRequest:
    """Create a run, and wait for its end if asked to. Sending the request again does not create another one."""
    headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
    if wait_s:
        headers["Prefer"] = f"wait={wait_s}"
    return ApiRequest("POST", "/runs", dict(fields), headers=headers, wait_s=wait_s)


def list_runs(limit: int, before: str | None, filters: Mapping[str, Any]) -> ApiRequest:
    """List the newest runs, or those before a given one, that match the filters."""
    return ApiRequest("GET", "/runs", params=list_params(limit, before, filters))


def list_params(limit: int, before: str | None, filters: Mapping[str, Any]) -> dict[str, str | int]:
    """Return the query parameters of a page of a list."""
    params: dict[str, str | int] = {"limit": limit}
    for name, value in {"before": before, **filters}.items():
        if name == "metadata":
            params |= {f"metadata.{key}": text for key, text in value.items()}
        elif value is not None:
            params[name] = value if isinstance(value, str) else ",".join(value)
    return params


def get_run(run_id: str, wait_s: int = 0) -> ApiRequest:
    """Get one run with its stages and its result, at once or when it has ended or waits for a person."""
    return ApiRequest("GET", run_path(run_id), params={"wait": wait_s} if wait_s else {}, wait_s=wait_s)


def cancel_run(run_id: str, reason: str | None = None) -> ApiRequest:
    """Cancel a run, whatever its state."""
    return ApiRequest("POST", run_path(run_id) + "/cancel", None if reason is None else {"reason": reason})


def explain_run(run_id: str) -> ApiRequest:
    """Explain where a run is and what would move it."""
    return ApiRequest("GET", run_path(run_id) + "/explain")


def export_run(run_id: str) -> ApiRequest:
    """Export a run as one JSON document."""
    return ApiRequest("GET", run_path(run_id) + "/export")


def delete_run(run_id: str) -> ApiRequest:
    """Delete a run, whatever its state."""
    return ApiRequest("DELETE", run_path(run_id))


def decide(run_id: str, call_id: str, decision: str, **details: Any) -> ApiRequest:
    """Decide on a waiting call: `approve`, `deny` or `answer`."""
    given = {name: value for name, value in details.items() if value is not None}
    return ApiRequest(
        "POST", f"{run_path(run_id)}/approvals/{quote(call_id, safe='')}", {"decision": decision, **given}
    )


def give_result(
    run_id: str, call_id: str, content: str, *, is_error: bool = False, ref: str | None = None
) -> ApiRequest:
    """Give the result of a call that waits for it."""
    body: Json = {"content": content, "is_error": is_error} | ({} if ref is None else {"ref": ref})
    return ApiRequest("POST", f"{_call_path(run_id, call_id)}/result", body)


def claim_call(run_id: str, call_id: str, ref: str, holder: str) -> ApiRequest:
    """Claim a call, so that no other client runs it meanwhile."""
    return ApiRequest("POST", f"{_call_path(run_id, call_id)}/claim", {"holder": holder, "ref": ref})


def create_ticket(run_id: str, *, share: bool, ttl_s: int | None, calls: bool = False) -> ApiRequest:
    """Create a ticket that gives access to the run."""
    body: Json = {"share": share} | ({} if ttl_s is None else {"ttl_s": ttl_s}) | ({"calls": True} if calls else {})
    return ApiRequest("POST", run_path(run_id) + "/ticket", body)


def revoke_ticket(run_id: str, ticket_id: str) -> ApiRequest:
    """Revoke a ticket."""
    return ApiRequest("DELETE", f"{run_path(run_id)}/ticket/{quote(ticket_id, safe='')}")


TOOLS: Final = ApiRequest("GET", "/tools")
MODELS: Final = ApiRequest("GET", "/models")
FEED_PATH: Final = "/runs/events"
# A page without a cursor is empty and names the feed's end.
FEED_END: Final = ApiRequest("GET", FEED_PATH, headers={"Accept": "application/json"})


def list_deliveries(state: str | None, endpoint: str | None, limit: int, before: str | None) -> ApiRequest:
    """List the newest deliveries of webhooks, or those before a given one, that match."""
    filters = {"state": state, "endpoint": endpoint, "before": before}
    params: dict[str, str | int] = {name: value for name, value in filters.items() if value is not None}
    return ApiRequest("GET", "/webhooks/deliveries", params={"limit": limit, **params})


def resend_delivery(delivery_id: str) -> ApiRequest:
    """Send a webhook's delivery again."""
    return ApiRequest("POST", f"/webhooks/deliveries/{quote(delivery_id, safe='')}/resend")


def run_path(run_id: str) -> str:
    """Return the path of a run; special characters in the id are escaped."""
    return f"/runs/{quote(run_id, safe='')}"


def _call_path(run_id: str, call_id: str) -> str:
    return f"{run_path(run_id)}/calls/{quote(call_id, safe='')}"


def backoff_s(tries: int, response: httpx.Response | None, jitter: float) -> float | None:
    """Return the seconds until the request is sent again; None if a retry would not help.

    Args:
        tries: how often the request has been sent.
        response: None if there was no answer.
    """
    if tries >= TRIES_MAX or (response is not None and response.status_code not in RETRYABLE_STATUSES):
        return None
    requested_s = retry_after_s(response) if response is not None else None
    if requested_s is not None and requested_s > RETRY_AFTER_MAX_S:
        return None
    return max(RETRY_S * 2.0 ** (tries - 1) * jitter, requested_s or 0.0)


def retry_after_s(response: httpx.Response) -> float | None:
    """Parse `Retry-After`, which a gateway always sends in seconds."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def parse_answer(response: httpx.Response) -> Json:
    """Return the JSON object of a successful response.

    Raises:
        httpx.RemoteProtocolError: the response does not come from a gateway.
    """
    if not response.content:
        return {}
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise httpx.RemoteProtocolError(
            "the server at this address is not a Stagebus gateway", request=response.request
        )
    return answer


def is_json(response: httpx.Response) -> bool:
    """Return True if the response is JSON, as a gateway's errors are and a proxy's pages are not."""
    return "json" in response.headers.get("content-type", "")


def parse_refusal(response: httpx.Response) -> Refused:
    """Return the error for an error response."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    return Refused.of(response.status_code, problem if isinstance(problem, dict) else {}, retry_after_s(response))


def client_options(url: str | None, api_key: str | None, ticket: str | None, user: str | None = None) -> dict[str, Any]:
    """Return the arguments for httpx's clients: address, credentials and timeouts.

    STAGEBUS_URL and STAGEBUS_API_KEY are the defaults; an empty key means none.

    Raises:
        BadKey: the key contains characters that no key has.
        BadUserName: the user's name contains characters that no name has.
    """
    base_url = (url or os.environ.get("STAGEBUS_URL") or URL_DEFAULT).rstrip("/")
    key = "" if ticket else os.environ.get("STAGEBUS_API_KEY", "") if api_key is None else api_key
    key = key.strip()  # keys read from files often end with a line end
    if not all("!" <= character <= "~" for character in key):
        raise BadKey
    if user and not is_user(user):
        raise BadUserName
    arguments: dict[str, Any] = {
        "base_url": base_url,
        "headers": {
            **({"Authorization": f"Bearer {key}"} if key else {}),
            **({USER_HEADER: user.encode()} if user else {}),
        },
        "params": {"ticket": ticket} if ticket else {},
        "timeout": httpx.Timeout(ANSWER_MAX_S, connect=CONNECT_MAX_S),
        # Proxies from the environment do not apply to this machine.
        "trust_env": not is_loopback(httpx.URL(base_url).host),
    }
    if httpx.URL(base_url).scheme == "http":
        # Loading the system's certificate authorities takes 45 ms. Plain HTTP needs none.
        arguments["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return arguments
