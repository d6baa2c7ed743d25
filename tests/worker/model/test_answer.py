import json

import pytest

from shared.errors import ModelOutputTooLong, ModelRejected, ModelUnavailable
from worker.model.answer import CHUNK_MIN_BYTES, AnswerReader


def event(**chunk: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(chunk).encode()


def say(text: str, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}])


def read(body: bytes, output_max_bytes: int = 10_000) -> list:
    reader = AnswerReader(output_max_bytes)
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


@pytest.mark.parametrize("body", [b"", say("Hi"), say("Hi")[:-9], b"<html>Busy</html>", b": only comments\n\n"])
def test_answer_without_an_end_is_cut(body):
    with pytest.raises(ModelUnavailable, match="broke off"):
        read(body)


def test_chunks_before_the_error_come_out_first():
    reader = AnswerReader(10_000)
    chunks = reader.feed(say("Hi") + event(error={"message": "secret", "type": "invalid_request_error"}))

    assert next(chunks)["choices"][0]["delta"] == {"content": "Hi"}
    with pytest.raises(ModelRejected) as failure:
        next(chunks)
    assert "secret" not in str(failure.value)
    assert "secret" in str(failure.value.__cause__)


def test_garbage_may_pass():
    with pytest.raises(ModelUnavailable, match="no chat completion chunk"):
        read(b"data: oops\n\n")


def test_output_has_a_limit_that_counts_what_the_model_says():
    read(say("x" * 900, "stop"), output_max_bytes=1000)
    for body in (say("x" * 1001), say("ä" * 501), event(choices=[{"delta": {"tool_calls": ["x" * 1000]}}])):
        with pytest.raises(ModelOutputTooLong, match="1000 bytes"):
            read(body, output_max_bytes=1000)


def test_chunks_that_say_nothing_count_too():
    with pytest.raises(ModelOutputTooLong):
        read(say("") * 11, output_max_bytes=CHUNK_MIN_BYTES * 10)
    with pytest.raises(ModelOutputTooLong):
        read(event(choices=7) * 11, output_max_bytes=CHUNK_MIN_BYTES * 10)


def test_whole_completion_becomes_one_chunk():
    message = {"role": "assistant", "content": "Hi"}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    (chunk,) = AnswerReader(10_000).take_whole(body)

    assert chunk == {"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", ModelUnavailable),
        (b"[]", ModelUnavailable),
        (b"{}", ModelUnavailable),
        (b'{"error": {"message": "x", "code": 400}}', ModelRejected),
        (b'{"choices": 1}', ModelUnavailable),
    ],
)
def test_whole_body_that_is_no_completion_is_an_error(body, error):
    with pytest.raises(error):
        list(AnswerReader(10_000).take_whole(body))
