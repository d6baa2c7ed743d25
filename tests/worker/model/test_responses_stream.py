"""Each deviation of a stream of the Responses API in a small case of its own."""

import time
from typing import Any

import orjson
import pytest

from stagebus.shared.domain import model_items
from stagebus.shared.errors import ModelError, ModelOutputTooLong, ModelRejected, ModelUnavailable
from stagebus.worker.model import event_reader
from stagebus.worker.model.chat_chunks import ITEMS_KEY
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from stagebus.worker.model.responses_stream import ResponsesReader

Event = dict[str, Any]

CREATED = {"type": "response.created", "response": {"model": "gpt", "status": "in_progress"}}
USAGE = {
    "input_tokens": 10, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3}, "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 15,
}  # fmt: skip


def end(*output: Event, status: str = "completed", **fields: Any) -> Event:
    response = {"status": status, "output": list(output), "usage": USAGE, "model": "gpt", **fields}
    return {"type": f"response.{status}", "response": response}


def text(piece: str, index: int = 0) -> Event:
    return {"type": "response.output_text.delta", "output_index": index, "content_index": 0, "delta": piece}


def added(item: Event, index: int = 0) -> Event:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(item: Event, index: int = 0) -> Event:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def message(content: str, **fields: Any) -> Event:
    return {"type": "message", "id": "msg", "content": [{"type": "output_text", "text": content}], **fields}


def call(arguments: str = '{"city":"Paris"}', call_id: str = "call_1", **fields: Any) -> Event:
    return {
        "type": "function_call",
        "id": "fc",
        "call_id": call_id,
        "name": "weather",
        "arguments": arguments,
        **fields,
    }


def reasoning(encrypted: str | None = "secret", **fields: Any) -> Event:
    return {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": encrypted, **fields}


def frames(*events: Event) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in events)


def chunks_of(body: bytes) -> list[Event]:
    reader = ResponsesReader(10_000)
    return [*reader.feed(body), *reader.finish("text/event-stream")]


def merge(*events: Event, body: bytes | None = None) -> MergedAnswer:
    merger = DeltaMerger()
    for chunk in chunks_of(frames(*events) if body is None else body):
        merger.add(chunk)
    return merger.result()


def failure_of(*events: Event) -> ModelError:
    with pytest.raises(ModelError) as failure:
        chunks_of(frames(*events))
    return failure.value


def test_text_is_streamed_as_chat_completion_chunks() -> None:
    chunks = chunks_of(frames(CREATED, text("Hel"), text("lo"), end(message("Hello"))))

    assert chunks[:2] == [
        {"model": "gpt", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}]},
        {"choices": [{"index": 0, "delta": {"content": "lo"}}]},
    ]
    assert chunks[2:] == [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        },
    ]  # fmt: skip


def test_nothing_is_streamed_before_the_answer_begins() -> None:
    """So that another provider can still be asked if this one fails now."""
    reader = ResponsesReader(1000)

    assert list(reader.feed(frames(CREATED, {"type": "response.in_progress", "response": {}}))) == []


@pytest.mark.parametrize(
    "events",
    [
        [text("Hel"), {**text("x"), "type": "response.output_text.done", "text": "Hello"}],
        [done(message("Hello"))],
        [text("Hello"), done(message("Hello"))],
        [],
    ],
    ids=["the rest with done", "no deltas", "repeated", "in the last event only"],
)
def test_text_counts_once_wherever_it_comes(events: list[Event]) -> None:
    assert merge(*events, end(message("Hello"))).text == "Hello"


@pytest.mark.parametrize(
    "events",
    [
        [
            added(call("")),
            {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"city"'},
            {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": ':"Paris"}'},
            {"type": "response.function_call_arguments.done", "output_index": 0, "arguments": '{"city":"Paris"}'},
            done(call(id="another")),
        ],
        [added(call("")), {"type": "response.function_call_arguments.done", "output_index": 0,
                           "arguments": '{"city":"Paris"}'}],
        [done(call())],
        [added({"type": "function_call"}), done(call())],
    ],
    ids=["deltas", "no deltas", "no start", "a name at the end only"],
)  # fmt: skip
def test_call_is_read_however_its_arguments_come(events: list[Event]) -> None:
    merged = merge(*events, end(call()))

    assert [(c.id, c.name, c.arguments) for c in merged.tool_calls] == [("call_1", "weather", '{"city":"Paris"}')]
    assert merged.finish_reason == "tool_calls"


def test_interleaved_calls_are_kept_apart() -> None:
    def piece(index: int, delta: str) -> Event:
        return {"type": "response.function_call_arguments.delta", "output_index": index, "delta": delta}

    first, second = call("", "a"), call("", "b")
    merged = merge(
        added(first), added(second, 1), piece(0, '{"n":'), piece(1, '{"n":2'), piece(0, "1}"), piece(1, "}"), end()
    )

    assert [(c.id, c.arguments) for c in merged.tool_calls] == [("a", '{"n":1}'), ("b", '{"n":2}')]


def test_reasoning_is_streamed_and_goes_back_as_its_item_was_done() -> None:
    """Not as it was added, nor as the last event has it: each encryption is another one."""
    delta = {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "Hm."}
    merged = merge(
        added(reasoning("incomplete")), delta, done(reasoning("good")), done(call(), 1), end(reasoning("other"), call())
    )

    assert merged.reasoning == "Hm."
    assert merged.items is not None
    assert merged.items.items == [
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "good"},
        {"type": "function_call"},
    ]


def test_last_chunk_with_items_is_no_part_of_the_stream() -> None:
    *shown, last = chunks_of(frames(done(reasoning()), done(call(), 1), end()))

    assert ITEMS_KEY in last
    assert "secret" not in str(shown)


def test_message_with_a_phase_goes_back_in_the_plain_form() -> None:
    """Servers that check types accept parts of an answer only with an id."""
    merged = merge(done(message("Let me see.", phase="commentary")), done(call(), 1), end())

    assert merged.items is not None
    assert merged.items.items[0] == {
        "type": "message", "role": "assistant", "content": "Let me see.", "phase": "commentary",
    }  # fmt: skip


def test_raw_reasoning_goes_back_with_its_id() -> None:
    raw = reasoning(None, content=[{"type": "reasoning_text", "text": "Let me see."}])
    merged = merge(done(raw), done(call(), 1), end())

    assert merged.reasoning == "Let me see."
    assert merged.items is not None
    assert merged.items.items[0] == {name: value for name, value in raw.items() if value is not None}


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        ([done(reasoning()), done({"type": "apply_patch_call"}, 1), done(call(), 2)], []),
        ([done(call()), done(reasoning(), 1), end(status="incomplete")], []),
        ([done(reasoning(None)), done(call(), 1)], []),
        ([done(message("Hi")), done(call(), 1)], []),
        (
            [done(reasoning()), done({"type": "web_search_call", "id": "ws"}, 1), done(call(), 2)],
            ["reasoning", "web_search_call", "function_call"],
        ),
        ([done(message("Hi", phase="commentary")), done(call(), 1)], ["message", "function_call"]),
        ([done(call(), 1), done(reasoning(), 0)], ["reasoning", "function_call"]),
    ],
    ids=["before a dropped item", "cut off", "not encrypted", "plain", "hosted tools", "phase", "out of order"],
)
def test_items_that_go_back(events: list[Event], kept: list[str]) -> None:
    """Reasoning is refused without the item after it, and calls of other kinds could not be answered."""
    merged = merge(*events, end())

    assert [item["type"] for item in (merged.items.items if merged.items else [])] == kept


def test_items_beyond_the_limit_are_all_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert event_reader.ITEMS_MAX_BYTES == model_items.ITEMS_MAX_BYTES
    monkeypatch.setattr(event_reader, "ITEMS_MAX_BYTES", 1000)
    merged = merge(done(reasoning()), done(reasoning("x" * 1000), 1), done(call(), 2), end())

    assert merged.items is None
    assert len(merged.tool_calls) == 1


def test_item_without_json_is_not_kept() -> None:
    half = b'data: {"type":"response.output_item.done","output_index":0,"item":{"type":"reasoning","encrypted_content":"\\ud83d"}}\n\n'

    assert merge(body=half + frames(done(call(), 1), end())).items is None


def test_items_without_an_index_are_told_apart_by_their_ids() -> None:
    events = [
        {"type": "response.output_text.delta", "item_id": "msg", "delta": "Hi"}, done(message("Hi")),
        added(call("", id="fc_1")), {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": "{}"},
        done(call("{}", id="fc_1")), done(call("{}", "call_2", id="fc_2")),
    ]  # fmt: skip
    merged = merge(*({n: v for n, v in event.items() if n != "output_index"} for event in events), end())

    assert merged.text == "Hi"
    assert [(c.id, c.arguments) for c in merged.tool_calls] == [("call_1", "{}"), ("call_2", "{}")]


def test_odd_indexes_and_types_are_tolerated() -> None:
    odd = [{**text("Hi"), "output_index": [1]}, {**done({"type": ["x"]}), "output_index": {}}, added({"type": {}})]

    assert merge(*odd, end()).text == "Hi"


def test_final_answer_is_the_text_beside_commentary() -> None:
    events = [
        text("Let me see."), done(message("Let me see.", phase="commentary")),
        text("18 °C", 1), done(message("18 °C", phase="final_answer"), 1),
    ]  # fmt: skip

    assert merge(*events, end()).text == "18 °C"
    assert merge(*events[:2], end()).text == "Let me see."


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [("max_output_tokens", "length"), ("content_filter", "content_filter"), (None, "length")],
)
def test_incomplete_response_has_a_reason(reason: str | None, finish_reason: str) -> None:
    details = {"incomplete_details": reason and {"reason": reason}}
    merged = merge(done(call('{"ci', status="incomplete")), end(status="incomplete", **details))

    assert merged.finish_reason == finish_reason


def test_refusal_is_no_answer() -> None:
    refused = {"type": "response.refusal.delta", "output_index": 0, "content_index": 0, "delta": "I cannot."}
    merged = merge(refused, end())

    assert (merged.text, merged.refusal) == ("", "I cannot.")


@pytest.mark.parametrize(
    ("error", "kind", "retry_after_s"),
    [
        ({"error": {"code": "insufficient_quota", "type": "insufficient_quota", "message": "x"}}, ModelRejected, None),
        ({"code": "rate_limit_exceeded", "message": "Please try again in 28ms."}, ModelUnavailable, 0.028),
        ({"code": "rate_limit_exceeded", "message": "Try again in 35 seconds."}, ModelUnavailable, 35.0),
        ({"code": "server_error", "message": "x"}, ModelUnavailable, None),
        ({"code": "slow_down", "message": "x"}, ModelUnavailable, None),
        ({"code": "invalid_prompt", "message": "x"}, ModelRejected, None),
    ],
)
def test_error_in_the_stream_fails_the_request(error: Event, kind: type, retry_after_s: float | None) -> None:
    for event in (
        {"type": "error", **error},
        {"type": "response.failed", "response": {"error": error.get("error") or error}},
    ):
        failure = failure_of(CREATED, text("Hel"), event)
        assert type(failure) is kind
        assert getattr(failure, "retry_after_s", None) == retry_after_s


def test_chunks_before_an_error_come_first() -> None:
    reader = ResponsesReader(1000)
    chunks = reader.feed(frames(text("Hel"), {"type": "error", "message": "x"}))

    assert next(chunks)["choices"][0]["delta"]["content"] == "Hel"
    with pytest.raises(ModelError):
        next(chunks)


@pytest.mark.parametrize(
    "body", [frames(CREATED, text("Hel")), b"", b"data: [DONE]\n\n", b"<html>", frames(text("x")) + b"data: [DONE]\n\n"]
)
def test_stream_without_its_last_event_is_incomplete(body: bytes) -> None:
    with pytest.raises(ModelUnavailable):
        chunks_of(body)


def test_garbage_is_no_event() -> None:
    with pytest.raises(ModelUnavailable, match="not an event"):
        chunks_of(b'event: response.output_text.delta\ndata: {"type": "resp\n\n')


def test_unknown_events_comments_and_missing_names_are_tolerated() -> None:
    """As gateways send them: pings, `[DONE]`, no `event:` lines, errors of a hosted tool."""
    odd = [
        {"type": "keepalive", "sequence_number": 2},
        {"type": "response.mcp_call.failed", "error": {"message": "a hosted tool failed"}},
        added({"type": "never_seen"}, 7), {"type": "response.output_text.delta", "delta": None},
    ]  # fmt: skip
    body = b": PROCESSING\n\n" + b"".join(
        b"data: %b\n\n" % orjson.dumps(event) for event in [*odd, text("Hi"), end(message("Hi"))]
    )

    assert merge(body=body + b"event: ping\ndata: ok\n\ndata: [DONE]\n\n").text == "Hi"


def test_whole_response_is_read_without_a_stream() -> None:
    response = {"object": "response", "status": "completed", "output": [message("Hi"), call()], "usage": USAGE}
    merged = merge(body=orjson.dumps(response))

    assert (merged.text, len(merged.tool_calls)) == ("Hi", 1)


def test_custom_call_gets_its_text_as_arguments() -> None:
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "SELECT 1"}
    piece = {"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": "SELECT "}
    merged = merge(added({**custom, "input": ""}), piece, done(custom), end())

    assert [(c.name, c.arguments) for c in merged.tool_calls] == [("sql", "SELECT 1")]


def test_output_limit_counts_text_and_every_event() -> None:
    reader = ResponsesReader(200)
    with pytest.raises(ModelOutputTooLong):
        list(reader.feed(frames(*[text("")] * 10)))
    with pytest.raises(ModelOutputTooLong):
        list(ResponsesReader(200).feed(frames(text("x" * 300))))
    with pytest.raises(ModelOutputTooLong):
        list(
            ResponsesReader(200).feed(frames({"type": "response.output_text.delta", "item_id": "x" * 300, "delta": ""}))
        )


def test_repeated_ends_of_a_long_text_take_linear_time() -> None:
    """A reader that joined the pieces for each of them would hold up the worker's other runs."""
    whole = {"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": "x"}
    whole_call = {"type": "response.function_call_arguments.done", "output_index": 1, "arguments": "x"}
    piece = {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "ab"}
    events = [text("ab"), piece] * 10_000 + [whole, whole_call] * 8000
    began = time.process_time()
    chunks = [*ResponsesReader(2**21).feed(frames(added(call(""), 1), *events))]

    assert len(chunks) == 1 + 20_000
    assert time.process_time() - began < 1
