import json

import pytest

from stagebus.shared.errors import ModelOutputTooLong, ModelRejected, ModelUnavailable
from stagebus.worker.model.chat_response import CHUNK_MIN_BYTES, ChatResponseReader

MESSAGE = {"role": "assistant", "content": "Hi \u2028 there"}
COMPLETION = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": {"total_tokens": 3},
}
WHOLE = json.dumps(COMPLETION).encode()


def event(**chunk: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(chunk).encode()


def say(text: str, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}])


def read(body: bytes, output_max_bytes: int = 10_000) -> list:
    reader = ChatResponseReader(output_max_bytes)
    return [*reader.feed(body), *reader.finish()]


@pytest.mark.parametrize(
    "body",
    [
        say("Hi", "stop") + b"data: [DONE]\n\n",
        say("Hi", "stop"),
        say("Hi", "stop").rstrip(),
        say("Hi") + b"data: [DONE]",
        say("Hi", "stop") + event(error={"message": "limit"}),
        say("Hi", "stop") + b'data: {"usage": {"tot',
    ],
)
def test_answer_with_a_reason_or_done_is_complete(body):
    assert read(body)[0]["choices"][0]["delta"] == {"content": "Hi"}


@pytest.mark.parametrize("body", [say("Hi"), say("Hi") + say(" there")[:-9]])
def test_answer_without_finish_reason_is_an_error(body):
    with pytest.raises(ModelUnavailable, match="ended its answer too early"):
        read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html>\n<html><script>\n{\n} [data]\n</script>Busy</html>",
        b"Service Unavailable",
        b": only comments\n\n",
        say("Hi")[:-9],
        WHOLE[:-9],
        b"[1]",
        b"{",
        b"\x1f\x8b\x08 compressed unasked",
    ],
)
def test_error_for_another_body_names_its_media_type(body):
    reader = ChatResponseReader(10_000)
    assert list(reader.feed(body)) == []

    with pytest.raises(ModelUnavailable, match=r"not a chat completion: text/html$"):
        list(reader.finish("text/html; charset=utf-8"))


def test_body_without_content_is_an_empty_answer():
    with pytest.raises(ModelUnavailable, match="empty answer"):
        list(ChatResponseReader(10_000).finish())
    for body in (b"data: [DONE]\n\n", b": PROCESSING\n\ndata: [DONE]\n\ndata: [DONE]\n\n"):
        with pytest.raises(ModelUnavailable, match="empty answer"):
            read(body)


def test_error_names_only_a_valid_media_type():
    reader = ChatResponseReader(10_000)
    list(reader.feed(b"Busy"))

    with pytest.raises(ModelUnavailable, match=r"not a chat completion$"):
        list(reader.finish("<script>"))


def test_chunks_before_an_error_are_returned_first():
    reader = ChatResponseReader(10_000)
    chunks = reader.feed(say("Hi") + event(error={"message": "secret", "type": "invalid_request_error"}))

    assert next(chunks)["choices"][0]["delta"] == {"content": "Hi"}
    with pytest.raises(ModelRejected) as failure:
        next(chunks)
    assert "secret" not in str(failure.value)
    assert "secret" in str(failure.value.__cause__)


def test_invalid_chunk_is_retryable():
    with pytest.raises(ModelUnavailable, match="not a chat completion chunk"):
        read(b"data: oops\n\n")


def test_output_limit_counts_the_model_s_output():
    read(say("x" * 900, "stop"), output_max_bytes=1000)
    for body in (say("x" * 1001), say("ä" * 501), event(choices=[{"delta": {"tool_calls": ["x" * 1000]}}])):
        with pytest.raises(ModelOutputTooLong, match="1000 bytes"):
            read(body, output_max_bytes=1000)


def test_output_limit_counts_empty_chunks():
    with pytest.raises(ModelOutputTooLong):
        read(say("") * 11, output_max_bytes=CHUNK_MIN_BYTES * 10)
    with pytest.raises(ModelOutputTooLong):
        read(event(choices=7) * 11, output_max_bytes=CHUNK_MIN_BYTES * 10)


@pytest.mark.parametrize(
    "body",
    [
        WHOLE,
        b"\xef\xbb\xbf" + WHOLE,
        json.dumps(COMPLETION, indent=2).encode(),
        json.dumps(COMPLETION, indent=2).replace("\n", "\r\n").encode() + b"\r\n",
        json.dumps([COMPLETION], indent="\t").encode(),
        b"data: " + WHOLE + b"\n\n",
        b": OPENROUTER PROCESSING\n\n" + WHOLE,
        b"\n\n \n" + b" " * 9 + WHOLE + b"\n\n",
    ],
)
def test_completion_that_was_not_streamed_becomes_one_chunk(body):
    chunk = {**COMPLETION, "choices": [{"index": 0, "delta": MESSAGE, "finish_reason": "stop"}]}

    for cut in range(len(body)):
        reader = ChatResponseReader(10_000)
        assert [*reader.feed(body[:cut]), *reader.feed(body[cut:]), *reader.finish()] == [chunk]


def test_message_after_deltas_stays_and_counts():
    last = event(choices=[{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}])

    assert read(say("Hi") + last)[1]["choices"][0]["message"] == {"content": "Hi"}
    with pytest.raises(ModelOutputTooLong):
        read(say("Hi") + event(choices=[{"message": {"content": "x" * 1001}}]), output_max_bytes=1000)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"message": "x", "code": 400}}', ModelRejected),
        (b'{"error": "the model is overloaded", "error_type": "overloaded"}', ModelUnavailable),
        (json.dumps([{"error": {"code": 400, "message": "x"}}], indent=2).encode(), ModelRejected),
        (b'{"detail": "Internal Server Error"}\n', ModelUnavailable),
        (b'{"object": "error", "message": "x", "type": "BadRequestError", "code": 400}', ModelRejected),
        (b'error: {"code": 500, "message": "x", "type": "server_error"}\n\n', ModelUnavailable),
        (b'event: error\n{"message": "x", "type": "invalid_request_error"}\n\n', ModelRejected),
        (say("Hi") + b'{"error": {"message": "x", "code": 503}}\n', ModelUnavailable),
        (b'data: {"choices": null, "message": "busy", "code": 503}\n\n', ModelUnavailable),
        (b'data: {"type": "about:blank", "detail": "busy", "status": 503}\n\n', ModelUnavailable),
        (b'{"errors": [{"code": 7003, "message": "no route"}], "success": false}', ModelRejected),
    ],
)
def test_error_instead_of_an_answer_is_reported(body, error):
    for cut in range(len(body)):
        reader = ChatResponseReader(10_000)
        with pytest.raises(error, match=r"answered \d|with an error"):
            [*reader.feed(body[:cut]), *reader.feed(body[cut:]), *reader.finish()]


@pytest.mark.parametrize(
    "noise",
    [
        event(type="ping", message="still here"),
        event(status="processing"),
        b'event: tool.progress\ndata: {"phase": "failed", "name": "search", "error": "no network"}\n\n',
        b'event: note\ndata: [{"error": "no network"}, 1]\n\n',
        b"event: note\ndata: oops\n\n",
    ],
)
def test_data_that_is_no_chunk_is_neither_chunk_nor_error(noise):
    chunks = [*read(say("Hi", "stop"))]

    assert read(noise + say("Hi", "stop") + noise) == chunks
    with pytest.raises(ModelUnavailable, match="not a chat completion"):
        read(noise)


def test_completion_in_an_envelope_is_read():
    body = json.dumps({"data": COMPLETION, "success": True}).encode()

    assert read(body)[0]["choices"][0]["delta"]["content"] == MESSAGE["content"]


def test_endless_event_is_too_long():
    reader = ChatResponseReader(10**9)
    pieces = [b"data: ", *[b"x" * 2**20] * 4]

    with pytest.raises(ModelOutputTooLong, match="an event of more than"):
        [chunk for piece in pieces for chunk in reader.feed(piece)]
