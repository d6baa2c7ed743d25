"""Headers, query parameters and secrets of requests to a provider in the file."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.errors import ModelError, ModelRejected, ModelUnauthorized
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin
from stagebus.worker.model.model_client import ModelClient, ModelRequest

KEY = "sk-very-secret"
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'
)
HELLO = [{"role": "user", "content": "Hello"}]
Ask = Callable[..., Any]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Returns a function that sends a request to an address, with fields of the provider's entry, and returns the chunks."""
    models = []

    async def ask(
        url: str, messages: Any = HELLO, tools: list[dict[str, Any]] | None = None, **entry: Any
    ) -> list[dict[str, Any]]:
        provider = {"base_url": f"{url}/v1", "models": ["m"]} | entry
        file = ProvidersFile.model_validate({"providers": {"p": provider}})
        models.append(ModelClient(Settings(model_stall_timeout_s=5), Providers(file)))
        request = ModelRequest(model="m", messages=messages, tools=tools)
        async with aclosing(models[-1].stream(request)) as chunks:
            return [chunk async for chunk in chunks]

    yield ask
    for model in models:
        await model.aclose()


async def failure_of(asking: Any) -> ModelError:
    with pytest.raises(ModelError) as failure:
        await asking
    return failure.value


@pytest.mark.parametrize(
    ("entry", "sent", "not_sent"),
    [
        ({"key": KEY}, [b"authorization: bearer sk-very-secret"], []),
        ({"key": KEY, "auth_header": "api-key"}, [b"\napi-key: sk-very-secret"], [b"authorization"]),
        ({}, [], [b"authorization", b"sk-"]),
        ({"headers": {"Authorization": "Basic abc"}}, [b"authorization: basic abc"], []),
        ({"headers": {"X-Title": {"env": "TITLE"}}}, [b"x-title: ours"], [b"openai-organization", b"openai-project"]),
        ({"query": {"api-version": "2024-10-21"}}, [b"post /v1/chat/completions?api-version=2024-10-21 "], []),
    ],
)
async def test_key_headers_and_query_of_the_file_are_sent(
    byte_server, ask, monkeypatch, entry: dict[str, Any], sent: list[bytes], not_sent: list[bytes]
) -> None:
    for name, value in {"TITLE": "Ours", "OPENAI_API_KEY": "sk-of-openai", "OPENAI_ORG_ID": "org-1"}.items():
        monkeypatch.setenv(name, value)
    await ask(await byte_server.serve(ANSWER), **entry)
    head = byte_server.requests[0].lower()

    assert all(text in head for text in sent)
    assert not any(text in head for text in not_sent)


@pytest.mark.parametrize("number", [1, 2**70])
async def test_request_has_its_texts_and_numbers_exactly(byte_server, ask, number: int) -> None:
    parameters = {"type": "object", "properties": {"é": {"maximum": number}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    bodies = []

    def answer(_head: bytes, body: bytes) -> bytes:
        bodies.append(body)
        return ANSWER

    await ask(await byte_server.serve(answer), tools=tools)

    assert b"content-type: application/json" in byte_server.requests[0].lower()
    assert json.loads(bodies[0])["tools"][0]["function"]["parameters"] == parameters


async def test_cookies_of_one_answer_are_not_sent_with_the_next_request(byte_server, ask) -> None:
    url = await byte_server.serve(ANSWER.replace(b"\r\n\r\n", b"\r\nset-cookie: session=one; Path=/\r\n\r\n", 1))
    provider = Providers(ProvidersFile.model_validate({"providers": {"p": {"base_url": f"{url}/v1", "models": ["m"]}}}))
    model = ModelClient(Settings(model_stall_timeout_s=5), provider)
    for _ in range(2):
        async with aclosing(
            model.stream(ModelRequest(model="m", messages=[{"role": "user", "content": "Hello"}]))
        ) as chunks:
            assert [chunk async for chunk in chunks]
    await model.aclose()

    assert len(byte_server.requests) == 2
    assert not any(b"cookie" in head.lower() for head in byte_server.requests)


@pytest.mark.parametrize(
    ("base", "entry", "sent", "not_sent"),
    [
        ("/v1", {"api": "responses"}, [b"post /v1/responses ", b"authorization: bearer sk-very-secret"], []),
        ("", {"api": "messages"},
         [b"post /v1/messages ", b"x-api-key: sk-very-secret", b"anthropic-version: 2023-06-01"], [b"authorization"]),
        ("/v1", {"api": "messages", "auth_header": "Authorization", "headers": {"Anthropic-Version": "2027-01-01"}},
         [b"post /v1/messages ", b"authorization: bearer sk-very-secret", b"anthropic-version: 2027-01-01"],
         [b"x-api-key", b"2023-06-01"]),
        ("/publishers", {"api": "messages", "path": "/models/{model}:streamRawPredict"},
         [b"post /publishers/models/m:streamrawpredict "], []),
    ],
    ids=["responses", "messages", "a base with a version", "a path of the file"],
)  # fmt: skip
async def test_each_api_has_its_path_and_headers(
    byte_server, ask, base: str, entry: dict[str, Any], sent: list[bytes], not_sent: list[bytes]
) -> None:
    response = {"object": "response", "status": "completed"}
    message = {"type": "message", "content": [], "stop_reason": "end_turn"}
    body = orjson.dumps(response if entry["api"] == "responses" else message)
    head_of = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    url = await byte_server.serve(head_of % len(body) + body)
    await ask(url, key=KEY, base_url=f"{url}{base}", **entry)
    head = byte_server.requests[0].lower()

    assert all(text in head for text in sent)
    assert not any(text in head for text in not_sent)


@pytest.mark.parametrize(
    ("model", "path"),
    [("../../other", b"/v1/models/..%2F..%2Fother:x"), ("a@1?b#c", b"/v1/models/a@1%3Fb%23c:x"), ("..", b"")],
)
async def test_model_of_a_client_leads_to_no_other_address(byte_server, ask, model: str, path: bytes) -> None:
    url = await byte_server.serve(ANSWER)
    entry = {"path": "/models/{model}:x", "models": [{"name": "m", "id": model}]}
    if not path:
        with pytest.raises(ModelRejected):
            await ask(url, **entry)
    else:
        await ask(url, **entry)
    assert [head.split()[1] for head in byte_server.requests] == [path] * bool(path)


@pytest.mark.parametrize(
    "error",
    [
        {"code": "invalid_encrypted_content", "message": "The encrypted content for item rs_1 could not be verified."},
        {"type": "invalid_request_error", "message": "messages.1.content.0: Invalid `signature` in `thinking` block"},
        {"message": "Item 'rs_1' of type 'reasoning' was provided without its required following item."},
    ],
)
async def test_items_that_the_provider_no_longer_accepts_are_left_out(byte_server, ask, error: dict[str, Any]) -> None:
    """For example after a key was changed while the run waited for a person."""
    asked = []

    def answer(_head: bytes, body: bytes) -> bytes:
        asked.append(orjson.loads(body)["input"])
        if "secret" not in str(asked[-1]):
            data = orjson.dumps({"object": "response", "status": "completed"})
            return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
        data = orjson.dumps({"error": error})
        return b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)

    reasoning = {"type": "reasoning", "summary": [], "encrypted_content": "secret"}
    items = ModelItems("responses", "p", "m", [reasoning, {"type": "function_call"}])
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "tool_calls": [call], ORIGIN_KEY: MessageOrigin("p", items=items)}
    messages = [{"role": "user", "content": "x"}, said, {"role": "tool", "tool_call_id": "c", "content": "y"}]
    await ask(await byte_server.serve(answer), messages=messages, api="responses")

    assert [len(items) for items in asked] == [4, 3]


@pytest.mark.parametrize("missing_bytes", [0, 9], ids=["whole", "cut after its last event"])
async def test_paused_turn_is_continued_on_the_same_provider(byte_server, ask, missing_bytes: int) -> None:
    asked = []

    def answer(_head: bytes, body: bytes) -> bytes:
        asked.append(orjson.loads(body)["messages"])
        reason = "pause_turn" if len(asked) == 1 else "end_turn"
        text = {"type": "text", "text": f"{len(asked)} "}
        data = orjson.dumps(
            {"type": "message", "content": [text], "stop_reason": reason, "usage": {"output_tokens": 1}}
        )
        data = b"data: %b\n\n" % data
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(data) + missing_bytes, data)

    chunks = await ask(await byte_server.serve(answer), api="messages")

    assert [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]] == ["1 ", "2 ", None]
    assert asked[1] == [*asked[0], {"role": "assistant", "content": [{"type": "text", "text": "1 "}]}]
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_error_is_read_as_utf_8_whatever_its_charset(byte_server, ask, caplog) -> None:
    """Python's punycode takes time that grows with the square of the length."""
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json; charset=punycode\r\nconnection: close\r\n\r\n"
    failure = await failure_of(ask(await byte_server.serve(head + '{"error": {"message": "No é here"}}'.encode())))

    assert type(failure) is ModelRejected
    assert "No é here" in caplog.text


async def test_redirect_is_not_followed(byte_server, ask) -> None:
    """A redirect would send the conversation, and keys in custom headers, to another host."""
    elsewhere = await byte_server.serve(ANSWER)
    redirect = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: %b/v1/chat/completions\r\n" % elsewhere.encode()
    failure = await failure_of(
        ask(await byte_server.serve(redirect + b"content-length: 0\r\n\r\n"), key=KEY, auth_header="api-key")
    )

    assert type(failure) is ModelRejected
    assert "answered 307" in str(failure)
    assert len(byte_server.requests) == 1


async def test_missing_key_is_logged_and_nothing_is_sent(byte_server, ask, caplog) -> None:
    url = await byte_server.serve(ANSWER)
    with caplog.at_level(logging.WARNING):
        failure = await failure_of(ask(url, key={"env": "STAGEBUS_NO_SUCH_KEY"}))

    assert type(failure) is ModelUnauthorized
    assert "STAGEBUS_NO_SUCH_KEY" not in str(failure)
    assert "provider p failed" in caplog.text
    assert "STAGEBUS_NO_SUCH_KEY is empty or not set" in caplog.text
    assert byte_server.requests == []


async def test_secret_headers_and_query_are_masked(byte_server, ask, caplog) -> None:
    body = b'{"error": {"message": "bad %b and other-secret"}}' % KEY.encode()
    answer = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with caplog.at_level(logging.WARNING):
        failure = await failure_of(
            ask(await byte_server.serve(answer + body), key=KEY, headers={"X-Gateway": "other-secret"})
        )

    assert "bad *** and ***" in caplog.text
    assert not any(secret in caplog.text + str(failure) for secret in (KEY, "other-secret"))
