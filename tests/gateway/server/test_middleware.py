import asyncio
import json
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from stagebus.shared.observability.logging import JsonFormatter, fields_of


@pytest.fixture
def broken(app: Starlette) -> Starlette:
    """The app with two handlers that fail: one before its response, one within it."""

    async def fail(_request: Request) -> Response:
        raise RuntimeError("the password is s3cret")

    async def fail_later(_request: Request) -> Response:
        async def body():
            yield b"half"
            raise RuntimeError("the password is s3cret")

        return StreamingResponse(body())

    app.router.routes += [Route("/fail", fail), Route("/fail-later", fail_later)]
    return app


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "stagebus.access"]


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd8448eb211c80319c", "A.b_c-9", "x" * 128])
async def test_valid_request_id_is_kept(api: httpx.AsyncClient, given: str) -> None:
    assert (await api.get("/healthz", headers={"X-Request-ID": given})).headers["x-request-id"] == given


async def test_access_log_has_one_line_per_request_without_the_query(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stagebus")

    response = await api.get("/runs?limit=5&ticket=s3cret")
    (line,) = lines(caplog)
    assert response.status_code == 200

    assert fields_of(line) | {"duration_ms": 0, "client": ""} == {
        "method": "GET",
        "path": "/runs",
        "status": 200,
        "bytes": len(response.content),
        "duration_ms": 0,
        "client": "",
        "subject": "anyone",
        "tenant": "default",
    }
    assert "s3cret" not in caplog.text


async def test_access_log_has_only_failed_probes(api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stagebus")

    await api.get("/healthz")
    assert not lines(caplog)
    await api.post("/healthz")
    assert [fields_of(line)["status"] for line in lines(caplog)] == [405]


async def test_unexpected_error_is_logged_and_not_shown_to_the_client(
    broken: Starlette, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    response = await api.get("/fail")

    assert response.status_code == 500
    assert response.json()["code"] == "internal"
    assert "s3cret" not in response.text
    (error,) = (line for line in map(json.loads, caplog.text.splitlines()) if line["level"] == "ERROR")
    assert error["request_id"] == response.headers["x-request-id"]
    assert "s3cret" in caplog.text


async def test_error_after_the_response_began_cuts_the_connection(broken: Starlette, api: httpx.AsyncClient) -> None:
    """Nothing is appended to an incomplete response."""
    with pytest.raises(RuntimeError):
        await api.get("/fail-later")


@pytest.mark.parametrize(
    ("path", "accept", "status", "body"),
    [
        ("/runs", b"application/json", 503, b'"code":"draining"'),
        ("/runs/01M856EDQQNKBF89347810NFN9/events", b"text/event-stream", 200, b"retry: "),
    ],
)
async def test_request_cancelled_by_shutdown_is_told_to_retry(
    app: Starlette, monkeypatch: pytest.MonkeyPatch, path: str, accept: bytes, status: int, body: bytes
) -> None:
    """The server itself would answer with a bare 500, after which an EventSource gives up."""
    waits, sent = asyncio.Event(), []

    async def hang(*_: object, **__: object) -> None:
        waits.set()
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        sent.append(message)

    monkeypatch.setattr("stagebus.shared.log.log_reader.read_head", hang)
    monkeypatch.setattr("stagebus.shared.store.run_list.list_runs", hang)
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"host", b"localhost"), (b"accept", accept)], "scheme": "http", "client": ("127.0.0.1", 1)}  # fmt: skip
    request = asyncio.create_task(app(scope, asyncio.Event().wait, send))
    await asyncio.wait_for(waits.wait(), 5)
    request.cancel()
    await asyncio.wait({request}, timeout=5)

    assert request.cancelled()
    assert sent[0]["status"] == status
    assert body in b"".join(message.get("body", b"") for message in sent[1:])
    assert not sent[-1].get("more_body")


async def test_unknown_methods_share_one_metric_label(api: httpx.AsyncClient) -> None:
    for method in ("BREW", "WHEN"):
        await api.request(method, "/runs")
    metrics = (await api.get("/metrics")).text

    assert 'stagebus_http_requests_total{method="other",route="/runs",status="405"} 2.0' in metrics
    assert "BREW" not in metrics
