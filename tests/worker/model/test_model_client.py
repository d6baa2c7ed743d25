"""The client against the demo model, and against servers that fail in ways the demo cannot."""

import asyncio
import gzip
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import httpx
import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import ModelError, ModelOutputTooLong, ModelRejected, ModelUnauthorized, ModelUnavailable
from stagebus.shared.observability.trace import Trace, bound
from stagebus.worker.model import provider
from stagebus.worker.model.chat_chunks import EVENT_MAX_BYTES
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from tests.support.fake_gateway import Answer, FakeGateway

KEY = "sk-very-secret"
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}]}\n\n'
LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
Connect = Callable[..., ModelClient]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Builds clients for any address and closes them at the end."""
    models = []

    def connect(url: str, **settings: object) -> ModelClient:
        fields = {"openai_base_url": f"{url}/v1", "openai_api_key": KEY, "model_stall_timeout_s": 5, **settings}
        models.append(ModelClient.from_settings(Settings(**fields)))
        return models[-1]

    yield connect
    for model in models:
        await model.aclose()


@pytest.fixture
def model(demo_url: str, connect: Connect) -> ModelClient:
    """A client of the demo."""
    return connect(demo_url)


async def test_warm_up_builds_the_clients(connect: Connect, byte_server) -> None:
    """A worker builds its clients when it starts, without any request."""
    model = connect(await byte_server.serve(HEAD + b"\r\n" + CHUNK + LAST))
    await model.warm_up()
    built = dict(model._provider_by_name)
    assert built
    assert not byte_server.requests
    await ask(model, request())

    assert model._provider_by_name == built


def request(model: str = "demo:delay_ms=0", prompt: str = "Hello", **fields: object) -> ModelRequest:
    return ModelRequest(model=model, messages=[{"role": "user", "content": prompt}], **fields)


async def test_long_conversation_costs_little_cpu(connect: Connect, byte_server) -> None:
    """Counts function calls: the SDK's typed parameters made hundreds for each message, without a break."""
    model = connect(await byte_server.serve(HEAD + b"\r\n" + CHUNK + LAST))
    called = 0

    def count(_frame: object, event: str, _what: object) -> None:
        nonlocal called
        called += event == "call"

    async def calls_of(messages: int) -> int:
        nonlocal called
        called = 0
        sys.setprofile(count)
        try:
            await ask(model, ModelRequest(model="m", messages=[{"role": "user", "content": "Hello"}] * messages))
        finally:
            sys.setprofile(None)
        return called

    await calls_of(1)
    assert await calls_of(501) < await calls_of(1) + 5 * 500


async def ask(model: ModelClient, asked: ModelRequest) -> MergedAnswer:
    merger = DeltaMerger(tool_names=[tool["function"]["name"] for tool in asked.tools or ()])
    async with aclosing(model.stream(asked)) as chunks:
        async for chunk in chunks:
            merger.add(chunk)
    return merger.result()


async def failure_of(asking: Awaitable[MergedAnswer]) -> ModelError:
    with pytest.raises(ModelError) as failure:
        await asking
    return failure.value


async def streams_are_closed(demo_url: str) -> None:
    """Waits until the demo has no open stream."""
    async with asyncio.timeout(5), httpx.AsyncClient() as client:
        while (await client.get(f"{demo_url}/demo/stats")).json()["open_streams"]:
            pass


async def test_answer_arrives_with_its_usage(model: ModelClient) -> None:
    merged = await ask(model, request())

    assert merged.text.startswith("This is the demo model")
    assert merged.finish_reason == "stop"
    assert merged.tokens is not None
    assert merged.tokens.completion_tokens == len(merged.text.split())


def test_token_estimate_counts_request_and_longest_answer() -> None:
    short = ModelRequest(model="m", messages=[{"role": "user", "content": "x" * 400}], max_tokens=50)
    open_ended = ModelRequest(model="m", messages=short.messages, tools=TOOLS)

    assert 150 <= short.estimate_tokens() < 165
    assert 625 <= open_ended.estimate_tokens() < 640


async def test_parallel_calls_arrive_complete(model: ModelClient) -> None:
    merged = await ask(model, request(prompt="What is the weather in Paris and in Tokyo?", tools=TOOLS))

    assert [(call.name, call.arguments) for call in merged.tool_calls] == [
        ("get_weather", '{"city": "Paris"}'),
        ("get_weather", '{"city": "Tokyo"}'),
    ]


async def test_chunks_are_streamed(model: ModelClient) -> None:
    async with aclosing(model.stream(request("demo:delay_ms=0,stall_after=1"))) as chunks:
        assert (await anext(chunks))["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("status=400", ModelRejected, "answered 400"),
        ("status=401", ModelUnauthorized, "answered 401"),
        ("status=403", ModelUnauthorized, "answered 403"),
        ("status=404", ModelRejected, "answered 404"),
        ("status=408", ModelUnavailable, "answered 408"),
        ("status=409", ModelUnavailable, "answered 409"),
        ("status=429", ModelUnavailable, "answered 429: too many requests"),
        ("status=500", ModelUnavailable, "answered 500"),
        ("status=529", ModelUnavailable, "answered 529"),
        ("cut_after=0", ModelUnavailable, "cut the connection"),
        ("cut_after=3", ModelUnavailable, "cut the connection"),
        ("garbage_after=3", ModelUnavailable, "not a chat completion chunk"),
        ("error_after=3", ModelUnavailable, "ended its answer with an error"),
        ("oops=3", ModelRejected, "answered 400"),
    ],
)
async def test_failure_has_its_class_and_hides_internals(
    model: ModelClient, demo_url: str, script: str, error: type[ModelError], words: str
) -> None:
    failure = await failure_of(ask(model, request(f"demo:delay_ms=0,{script}")))

    assert type(failure) is error
    assert words in str(failure)
    assert not any(inner in str(failure) for inner in (KEY, demo_url, "127.0.0.1", "told to fail"))
    assert failure.__cause__ is not None


async def test_retry_after_is_passed_on(model: ModelClient) -> None:
    failure = await failure_of(ask(model, request("demo:status=429,retry_after=7")))

    assert failure.retry_after_s == 7


async def test_client_does_not_retry(model: ModelClient) -> None:
    """The demo fails once, so a second request succeeds only if the first was sent once."""
    asked = request("demo:delay_ms=0,status=503,fail_times=1", prompt="once")
    await failure_of(ask(model, asked))

    assert (await ask(model, asked)).finish_reason == "stop"


@pytest.mark.parametrize("stall_after", [0, 3])
async def test_silent_provider_is_unavailable(demo_url: str, connect: Connect, stall_after: int) -> None:
    model = connect(demo_url, model_stall_timeout_s=0.2)
    failure = await failure_of(ask(model, request(f"demo:delay_ms=0,stall_after={stall_after}")))

    assert type(failure) is ModelUnavailable
    assert "silent for 0.2 s" in str(failure)
    await streams_are_closed(demo_url)


async def test_unreachable_provider_is_unavailable(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    failure = await failure_of(ask(connect(f"http://127.0.0.1:{port}"), request()))

    assert type(failure) is ModelUnavailable
    assert str(failure) == "the model's provider cannot be reached"


async def test_closing_the_answer_closes_the_connection(model: ModelClient, demo_url: str) -> None:
    async with aclosing(model.stream(request("demo:delay_ms=1,endless"))) as chunks:
        await anext(chunks)
    await streams_are_closed(demo_url)


async def test_cancelling_the_reader_closes_the_connection(model: ModelClient, demo_url: str) -> None:
    reading = asyncio.Event()

    async def read() -> None:
        async with aclosing(model.stream(request("demo:delay_ms=0,stall_after=1"))) as chunks:
            async for _ in chunks:
                reading.set()

    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await streams_are_closed(demo_url)


async def test_endless_answer_hits_the_output_limit(demo_url: str, connect: Connect) -> None:
    model = connect(demo_url, model_output_max_bytes=2000)
    failure = await failure_of(ask(model, request("demo:delay_ms=0,endless")))

    assert type(failure) is ModelOutputTooLong
    await streams_are_closed(demo_url)


async def test_stream_without_done_is_complete(model: ModelClient) -> None:
    assert (await ask(model, request("demo:delay_ms=0,no_done"))).finish_reason == "stop"


@pytest.mark.parametrize(
    "body", [HEAD + b"\r\n" + CHUNK + LAST, HEAD + b"content-length: 9999\r\n\r\n" + CHUNK + LAST + DONE]
)
async def test_body_that_ends_after_a_reason_or_is_cut_after_done_is_complete(byte_server, connect, body) -> None:
    merged = await ask(connect(await byte_server.serve(body)), request())

    assert (merged.text, merged.finish_reason) == ("Hi", "stop")


async def test_connection_left_open_after_done_is_closed(byte_server, connect) -> None:
    url = await byte_server.serve(HEAD + b"\r\n" + CHUNK + LAST + b"data: [DONE]\n\n", holds_on=True)
    started = time.monotonic()

    assert (await ask(connect(url), request())).text == "Hi"
    assert time.monotonic() - started < 2


EARLY = [
    b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}, "finish_reason": "stop"}]}\n\n' % word
    for word in (b"one ", b"two ", b"three")
]


async def test_content_after_an_early_finish_reason_counts_however_slow(byte_server, connect, monkeypatch) -> None:
    monkeypatch.setattr(provider, "_DONE_WAIT_S", 0.01)
    monkeypatch.setattr(provider, "_BODY_END_WAIT_S", 0.01)
    url = await byte_server.serve(HEAD + b"\r\n" + EARLY[0], EARLY[1], EARLY[2] + DONE, pause_s=0.2, holds_on=True)

    assert (await ask(connect(url), request())).text == "one two three"


async def test_cut_after_an_early_finish_reason_is_retryable(byte_server, connect) -> None:
    url = await byte_server.serve(HEAD + b"content-length: 9999\r\n\r\n" + EARLY[0] + EARLY[1])

    assert type(await failure_of(ask(connect(url), request()))) is ModelUnavailable


@pytest.mark.parametrize("rest", [b"", b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'])
async def test_silence_after_the_last_chunk_ends_the_answer(byte_server, connect, monkeypatch, rest) -> None:
    """After the usage, only [DONE] is left to wait for. After a finish reason alone, the wait is that for any chunk."""
    monkeypatch.setattr(provider, "_DONE_WAIT_S", 0.01)
    url = await byte_server.serve(HEAD + b"\r\n" + CHUNK + LAST + rest, holds_on=True)
    model = connect(url, model_stall_timeout_s=30 if rest else 0.5)

    assert (await ask(model, request())).text == "Hi"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>Sign in</html>",
        HEAD + b"\r\n" + CHUNK,
        HEAD + b"\r\n" + CHUNK + LAST[:-10],
        HEAD + b"content-length: 9999\r\n\r\n" + CHUNK,
        HEAD + b"content-length: 9999\r\n\r\n" + CHUNK + LAST,
        HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(CHUNK + LAST) + CHUNK + LAST + b"\r\n",
        HEAD + b"content-encoding: gzip\r\n\r\n" + CHUNK,
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
)
async def test_incomplete_answer_is_retryable(byte_server, connect, body) -> None:
    assert type(await failure_of(ask(connect(await byte_server.serve(body)), request()))) is ModelUnavailable


JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
HTML_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/login\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"", ModelUnavailable, "cut the connection"),
        (HEAD + b"content-length: 0\r\n\r\n", ModelUnavailable, "sent an empty answer"),
        (HTML_HEAD + b"\r\n<html>Sign in</html>", ModelUnavailable, "not a chat completion: text/html"),
        (JSON_HEAD + b"\r\n" + b'{"error": {"message": "x", "code": 429}}', ModelUnavailable, "answered 429"),
        (JSON_HEAD + b"\r\n" + b'{"error": "bad", "error_type": "validation"}', ModelRejected, "with an error"),
        (REDIRECT, ModelRejected, "answered 302"),
        (
            HEAD + b"\r\ndata: " + b"x" * (EVENT_MAX_BYTES + 1),
            ModelOutputTooLong,
            "an event of more than 4194304 bytes",
        ),
        (HEAD + b"\r\n" + b"x" * (EVENT_MAX_BYTES + 1), ModelOutputTooLong, "an event of more than 4194304 bytes"),
        (HEAD + b"content-encoding: br\r\n\r\n" + b"\x8b\x05\x80" * 9, ModelUnavailable, "not a chat completion"),
    ],
)
async def test_body_that_is_no_answer_is_described(byte_server, connect, answer, error, words) -> None:
    """The servers keep the connection open, so only the answer itself can end the wait."""
    url = await byte_server.serve(answer, holds_on=len(answer) > EVENT_MAX_BYTES)
    failure = await failure_of(ask(connect(url), request()))

    assert type(failure) is error
    assert words in str(failure)
    assert "elsewhere" not in str(failure)


async def test_compressed_answer_is_decoded(byte_server, connect) -> None:
    body = HEAD + b"content-encoding: gzip\r\n\r\n" + gzip.compress(CHUNK + LAST)

    assert (await ask(connect(await byte_server.serve(body)), request())).text == "Hi"


@pytest.mark.parametrize("head", [JSON_HEAD, HEAD])
async def test_unstreamed_answer_is_read(byte_server, connect, head) -> None:
    body = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}'
    merged = await ask(connect(await byte_server.serve(head + b"\r\n" + body)), request())

    assert (merged.text, merged.finish_reason, merged.usage) == ("Hi", "stop", {"total_tokens": 3})


async def test_stream_with_json_media_type_is_read(byte_server, connect) -> None:
    model = connect(await byte_server.serve(JSON_HEAD + b"\r\n" + CHUNK, holds_on=True))

    async with aclosing(model.stream(request())) as chunks:
        assert (await anext(chunks))["choices"][0]["delta"] == {"content": "Hi"}


async def test_key_is_sent_and_not_logged(byte_server, connect, caplog) -> None:
    body = b'{"error": {"message": "Incorrect API key provided: %s", "code": "invalid_api_key"}}' % KEY.encode()
    url = await byte_server.serve(b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\n\r\n" + body)
    with caplog.at_level(logging.WARNING):
        failure = await failure_of(ask(connect(url), request()))

    assert f"authorization: bearer {KEY}".encode() in byte_server.requests[0].lower()
    assert type(failure) is ModelUnauthorized
    assert KEY not in str(failure)
    assert "Incorrect API key provided: ***" in caplog.text
    assert KEY not in caplog.text


async def test_no_key_sends_no_authorization(byte_server, connect) -> None:
    url = await byte_server.serve(HEAD + b"\r\n" + CHUNK + LAST)

    assert (await ask(connect(url, openai_api_key=None), request())).finish_reason == "stop"
    assert b"authorization" not in byte_server.requests[0].lower()


async def test_trace_headers_reach_the_provider(connect: Connect) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with FakeGateway(lambda _: Answer(CHUNK + LAST)) as provider:
        with bound(Trace("mine", parent)):
            await ask(connect(provider.url), request())
        await ask(connect(provider.url), request())

    traced, untraced = (asked.headers for asked in provider.asked)
    assert (traced["x-request-id"], traced["traceparent"]) == ("mine", parent)
    assert "x-request-id" not in untraced
