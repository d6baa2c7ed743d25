"""The transport of the openai SDK with difficult servers, proxies and certificates."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
import trustme

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import ModelUnavailable
from stagebus.worker.model.model_client import ModelClient, ModelRequest

BODY = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ANSWER = HEAD + b"connection: close\r\n\r\n" + BODY
REFUSED = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
STALL_S = 0.2
Ask = Callable[..., Any]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers with a handler and returns their ports."""
    servers = []

    async def serve(handler: Handler, **options: Any) -> int:
        servers.append(await asyncio.start_server(handler, "127.0.0.1", 0, **options))
        port: int = servers[-1].sockets[0].getsockname()[1]
        return port

    yield serve
    for server in servers:
        server.close()


@pytest.fixture
async def model() -> AsyncIterator[Callable[..., ModelClient]]:
    """Builds clients for an address, with fields of the provider's entry."""
    models = []

    def model(url: str, **entry: Any) -> ModelClient:
        file = ProvidersFile.model_validate({"providers": {"p": {"base_url": f"{url}/v1", "models": ["m"], **entry}}})
        settings = Settings(model_stall_timeout_s=STALL_S, model_connect_timeout_s=STALL_S)
        models.append(ModelClient(settings, Providers(file)))
        return models[-1]

    yield model
    for each in models:
        await each.aclose()


async def ask(model: ModelClient, prompt: str = "Hello") -> str:
    request = ModelRequest(model="m", messages=[{"role": "user", "content": prompt}])
    async with aclosing(model.stream(request)) as chunks:
        return "".join([chunk["choices"][0]["delta"]["content"] async for chunk in chunks])


async def failure_of(model: ModelClient, prompt: str = "Hello") -> str:
    with pytest.raises(ModelUnavailable) as failure:
        await ask(model, prompt)
    return str(failure.value)


async def test_connection_is_reused_after_a_complete_answer(serve: Serve, model) -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length[15:]))
            writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))

    provider = model(f"http://127.0.0.1:{await serve(handle)}")

    assert [await ask(provider) for _ in range(3)] == ["Hi"] * 3
    assert connections == 1


async def test_disconnect_without_answer_is_reported_as_cut(byte_server, model) -> None:
    assert "cut the connection" in await failure_of(model(await byte_server.serve(b"")))


async def test_server_that_accepts_no_bytes_times_out(serve: Serve, model) -> None:
    """The request is larger than the buffers of both sides."""

    writers = []

    async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writers.append(writer)

    provider = model(f"http://127.0.0.1:{await serve(handle)}")

    assert f"silent for {STALL_S} s" in await failure_of(provider, "x" * 20_000_000)
    writers[0].transport.abort()


async def test_long_header_is_accepted(byte_server, model) -> None:
    """A content security policy or a cookie can exceed aiohttp's default limit."""
    answer = HEAD + b"connection: close\r\nx-long: " + b"x" * 30_000 + b"\r\n\r\n" + BODY

    assert await ask(model(await byte_server.serve(answer))) == "Hi"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n"])
async def test_key_in_the_url_is_not_shown(byte_server, model, caplog, answer: bytes) -> None:
    """In a URL the key is encoded differently from the file, so masking would not find it."""
    provider = model(await byte_server.serve(answer), query={"key": "se/cr+et=="})
    with caplog.at_level(logging.WARNING):
        said = await failure_of(provider)

    assert b"cr" in byte_server.requests[0]
    assert "provider p failed" in caplog.text
    assert not any(secret in caplog.text + said for secret in ("se/cr", "cr%2Bet", "cr+et"))


async def test_proxy_from_the_environment_is_used(byte_server, model, monkeypatch) -> None:
    proxy = await byte_server.serve(lambda head, _: REFUSED if head.startswith(b"CONNECT") else ANSWER)
    address = proxy.removeprefix("http://")
    monkeypatch.setenv("ALL_PROXY", f"http://user:word@{address}")
    monkeypatch.setenv("NO_PROXY", "direct.invalid")

    assert await ask(model("http://provider.invalid")) == "Hi"
    assert "cut the connection" in await failure_of(model("https://provider.invalid"))
    assert "cannot be reached" in await failure_of(model("http://direct.invalid"))
    plain, tunnel = byte_server.requests
    assert plain.startswith(b"POST http://provider.invalid/v1/chat/completions ")
    assert tunnel.startswith(b"CONNECT provider.invalid:443 ")
    assert all(b"proxy-authorization: basic dxnlcjp3b3jk" in head.lower() for head in (plain, tunnel))


async def test_tls_certificate_is_verified(serve: Serve, model, monkeypatch, tmp_path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        writer.close()

    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    port = await serve(handle, ssl=context)

    assert "cannot be reached" in await failure_of(model(f"https://localhost:{port}"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert await ask(model(f"https://localhost:{port}")) == "Hi"
    assert "cannot be reached" in await failure_of(model(f"https://127.0.0.1:{port}"))
