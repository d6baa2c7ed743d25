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
    """The app with two handlers that fail: before and within their answers."""

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
async def test_sane_request_id_is_kept(api: httpx.AsyncClient, given: str) -> None:
    assert (await api.get("/healthz", headers={"X-Request-ID": given})).headers["x-request-id"] == given


async def test_a_line_for_each_request_without_its_query(
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


async def test_probes_are_logged_only_when_they_fail(api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stagebus")

    await api.get("/healthz")
    assert not lines(caplog)
    await api.post("/healthz")
    assert [fields_of(line)["status"] for line in lines(caplog)] == [405]


async def test_unexpected_error_is_answered_without_its_text_and_logged_with_it(
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


async def test_error_within_an_answer_cuts_it(broken: Starlette, api: httpx.AsyncClient) -> None:
    """Nothing is appended to half an answer."""
    with pytest.raises(RuntimeError):
        await api.get("/fail-later")


@pytest.mark.parametrize(
    ("path", "accept", "status", "body"),
    [
        ("/runs", b"application/json", 503, b'"code":"draining"'),
        ("/runs/01M856EDQQNKBF89347810NFN9/events", b"text/event-stream", 200, b"retry: "),
    ],
)
async def test_request_that_a_shutdown_cuts_off_is_told_to_ask_again(
    app: Starlette, monkeypatch: pytest.MonkeyPatch, path: str, accept: bytes, status: int, body: bytes
) -> None:
    """The server's own answer is a bare 500, at which an EventSource gives up for good."""
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


async def test_invented_methods_share_a_label(api: httpx.AsyncClient) -> None:
    for method in ("BREW", "WHEN"):
        await api.request(method, "/runs")
    metrics = (await api.get("/metrics")).text

    assert 'stagebus_http_requests_total{method="other",route="/runs",status="405"} 2.0' in metrics
    assert "BREW" not in metrics
