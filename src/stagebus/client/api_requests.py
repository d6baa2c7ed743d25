"""Every request of the API as a value, what its answer means, and when to ask again; no I/O."""

import os
import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypedDict
from urllib.parse import quote
from uuid import uuid4

import httpx

from stagebus.client.client_errors import BadKey, Refused
from stagebus.shared.runtime.net import is_loopback

URL_DEFAULT: Final = "http://127.0.0.1:8000"
CONNECT_MAX_S: Final = 5.0
ANSWER_MAX_S: Final = 15.0
TRIES_MAX: Final = 4
RETRY_S: Final = 0.25
RETRY_AFTER_MAX_S: Final = 30.0

# Answers of a trouble that passes: the same request may be asked again.
PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

Json = dict[str, Any]


class RunFields(TypedDict, total=False):
    """The body of POST /runs; the gateway's /openapi.json says what each means."""

    model: str | dict[str, str]
    user_prompt: str
    system_prompt: str
    messages: list[Json]
    tools: list[str]
    tool_choice: str | Json
    parallel_tool_calls: bool
    synthesis: bool
    max_tokens: int | list[int | None]
    temperature: float | list[float | None]
    max_rounds: int
    timeout_s: float
    metadata: dict[str, str]


class RunFilters(TypedDict, total=False):
    """Which runs a list is to have: all of these have to fit."""

    status: str | list[str]
    model: str
    q: str  # how the id begins, or a part of the prompt or of a value of the metadata
    metadata: dict[str, str]


class Call(NamedTuple):
    """One request; sending it again changes nothing more."""

    method: str
    path: str
    json: Json | None = None
    params: Mapping[str, str | int] = {}
    headers: Mapping[str, str] = {}


def create(fields: Mapping[str, Any], idempotency_key: str | None) -> Call:
    """Make a run; one call makes one run, however often it is sent."""
    return Call("POST", "/runs", dict(fields), headers={"Idempotency-Key": idempotency_key or uuid4().hex})


def list_runs(limit: int, before: str | None, filters: Mapping[str, Any]) -> Call:
    """The newest runs, or those before one; all, or those that the filters want."""
    params: dict[str, str | int] = {"limit": limit}
    for name, value in {"before": before, **filters}.items():
        if name == "metadata":
            params |= {f"metadata.{key}": wanted for key, wanted in value.items()}
        elif value is not None:
            params[name] = value if isinstance(value, str) else ",".join(value)
    return Call("GET", "/runs", params=params)


def get(run_id: str) -> Call:
    """One run with its stages and its result."""
    return Call("GET", run_path(run_id))


def cancel(run_id: str) -> Call:
    """Cancel a run, in whatever state it is."""
    return Call("POST", run_path(run_id) + "/cancel")


def decide(run_id: str, call_id: str, decision: str, **details: Any) -> Call:
    """Say what a parked run waits for: `approve`, `deny` or `answer`."""
    given = {name: value for name, value in details.items() if value is not None}
    return Call("POST", f"{run_path(run_id)}/approvals/{quote(call_id, safe='')}", {"decision": decision, **given})


def ticket(run_id: str, *, share: bool, ttl_s: int | None) -> Call:
    """Ask for a ticket to look at the run."""
    return Call("POST", run_path(run_id) + "/ticket", {"share": share, **({} if ttl_s is None else {"ttl_s": ttl_s})})


def revoke_ticket(run_id: str, ticket_id: str) -> Call:
    """Take a ticket back."""
    return Call("DELETE", f"{run_path(run_id)}/ticket/{quote(ticket_id, safe='')}")


TOOLS: Final = Call("GET", "/tools")
MODELS: Final = Call("GET", "/models")


def run_path(run_id: str) -> str:
    """A run's own path, whatever stands in the id."""
    return f"/runs/{quote(run_id, safe='')}"


def backoff_s(tries: int, response: httpx.Response | None, jitter: float) -> float | None:
    """Seconds until the request is sent again; None where that would not help.

    Args:
        tries: how often it was sent.
        response: None where nobody answered.
    """
    if tries >= TRIES_MAX or (response is not None and response.status_code not in PASSING):
        return None
    asked_s = retry_after_s(response) if response is not None else None
    if asked_s is not None and asked_s > RETRY_AFTER_MAX_S:
        return None
    return max(RETRY_S * 2.0 ** (tries - 1) * jitter, asked_s or 0.0)


def retry_after_s(response: httpx.Response) -> float | None:
    """What the gateway's `Retry-After` says, which is always in seconds."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def answer_of(response: httpx.Response) -> Json:
    """What an answer that is no error says.

    Raises:
        httpx.RemoteProtocolError: nothing that a gateway would say.
    """
    if not response.content:
        return {}
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise httpx.RemoteProtocolError("what answers there is not a Stagebus gateway", request=response.request)
    return answer


def is_json(response: httpx.Response) -> bool:
    """Whether a gateway may have written an error: a proxy's page is none."""
    return "json" in response.headers.get("content-type", "")


def refusal(response: httpx.Response) -> Refused:
    """What an answer that is an error raises."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    return Refused.of(response.status_code, problem if isinstance(problem, dict) else {}, retry_after_s(response))


def connection(url: str | None, api_key: str | None, ticket: str | None) -> dict[str, Any]:
    """The arguments of httpx's clients: where, with what key, and how long to wait.

    What is not given comes from STAGEBUS_URL and STAGEBUS_API_KEY; an empty key is none.

    Raises:
        BadKey: it cannot be one.
    """
    base_url = (url or os.environ.get("STAGEBUS_URL") or URL_DEFAULT).rstrip("/")
    key = "" if ticket else os.environ.get("STAGEBUS_API_KEY", "") if api_key is None else api_key
    key = key.strip()  # a file's last line end comes along easily
    if not all("!" <= character <= "~" for character in key):
        raise BadKey
    arguments: dict[str, Any] = {
        "base_url": base_url,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "params": {"ticket": ticket} if ticket else {},
        "timeout": httpx.Timeout(ANSWER_MAX_S, connect=CONNECT_MAX_S),
        # A proxy that the environment names is not the way to this machine.
        "trust_env": not is_loopback(httpx.URL(base_url).host),
    }
    if httpx.URL(base_url).scheme == "http":
        # To read whom the system trusts takes 45 ms. Where nobody is asked for a certificate, nobody is trusted.
        arguments["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return arguments
