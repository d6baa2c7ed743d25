"""Each deviation of a stream of the Messages API in a small case of its own."""

from typing import Any

import orjson
import pytest

from stagebus.shared.errors import ModelError, ModelOutputTooLong, ModelRejected, ModelUnauthorized, ModelUnavailable
from stagebus.worker.model import messages_stream
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from stagebus.worker.model.messages_stream import MessagesReader

Event = dict[str, Any]

START = {
    "type": "message_start",
    "message": {"model": "claude", "content": [], "usage": {"input_tokens": 10, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}


def end(reason: str = "end_turn", usage: Event | None = None, **fields: Any) -> Event:
    return {"type": "message_delta", "delta": {"stop_reason": reason, **fields}, "usage": usage or {"output_tokens": 5}}


def block(content: Event, *deltas: Event, index: int = 0) -> list[Event]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text(*pieces: str, index: int = 0) -> list[Event]:
    return block(
        {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces), index=index
    )


def call(*pieces: str, index: int = 0, **fields: Any) -> list[Event]:
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block({**CALL, **fields}, *deltas, index=index)


def thinking(signature: str | None = "signed", index: int = 0) -> list[Event]:
    signed = [{"type": "signature_delta", "signature": signature}] if signature else []
    return block(THINKING, {"type": "thinking_delta", "thinking": "Hm."}, *signed, index=index)


def frames(*events: Event) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in events)


def read(reader: MessagesReader, merger: DeltaMerger, body: bytes) -> None:
    for chunk in [*reader.feed(body), *reader.finish("text/event-stream")]:
        merger.add(chunk)


def merge(*events: Event, body: bytes | None = None) -> MergedAnswer:
    merger = DeltaMerger()
    read(MessagesReader(10_000), merger, frames(*events) if body is None else body)
    return merger.result()


def test_text_and_calls_are_read() -> None:
    merged = merge(START, *text("Let ", "me"), *call("", '{"ci', 'ty":"Paris"}', index=1), end("tool_use"), STOP)

    assert merged.text == "Let me"
    assert [(c.id, c.name, c.arguments) for c in merged.tool_calls] == [("toolu_1", "weather", '{"city":"Paris"}')]
    assert (merged.finish_reason, merged.model, merged.items and merged.items.items) == ("tool_calls", "claude", None)


@pytest.mark.parametrize(
    ("events", "arguments"),
    [(call(""), "{}"), (call(), "{}"), (call(input={"city": "Paris"}), '{"city":"Paris"}')],
    ids=["an empty delta", "no delta", "in the block's start"],
)
def test_input_without_deltas_is_read(events: list[Event], arguments: str) -> None:
    (made,) = merge(START, *events, end("tool_use"), STOP).tool_calls

    assert made.arguments == arguments


def test_message_start_may_hold_the_whole_answer() -> None:
    whole = {**START["message"], "content": [{**CALL, "input": {"n": 1}}], "stop_reason": "tool_use"}
    for merged in (merge({"type": "message_start", "message": whole}, STOP), merge({"type": "message", **whole})):
        assert [c.arguments for c in merged.tool_calls] == ['{"n":1}']
        assert merged.finish_reason == "tool_calls"


def test_thinking_goes_back_unchanged_and_in_order() -> None:
    redacted = {"type": "redacted_thinking", "data": "opaque"}
    merged = merge(
        START, *thinking(), *block(redacted, index=1), *text("Hi", index=2), *call("{}", index=3), end("tool_use"), STOP
    )

    assert merged.reasoning == "Hm."
    assert merged.items is not None
    assert merged.items.items == [
        {"type": "thinking", "thinking": "Hm.", "signature": "signed"},
        redacted,
        {"type": "text", "text": "Hi"},
        {"type": "tool_use"},
    ]


def test_thinking_without_text_is_kept_for_its_signature() -> None:
    omitted = block(THINKING, {"type": "signature_delta", "signature": "signed"})
    merged = merge(START, *omitted, *call("{}", index=1), end("tool_use"), STOP)

    assert merged.items is not None
    assert merged.items.items[0] == {"type": "thinking", "thinking": "", "signature": "signed"}


def test_thinking_that_was_cut_off_does_not_go_back() -> None:
    merged = merge(START, *thinking(None), end("max_tokens"), STOP)

    assert merged.finish_reason == "length"
    assert merged.items is None


def test_blocks_of_the_provider_are_no_calls_but_go_back() -> None:
    search = {"type": "server_tool_use", "id": "srvtoolu", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu", "content": [{"title": "x"}]}
    cited = block(
        {"type": "text", "text": ""}, {"type": "text_delta", "text": "Rain."},
        {"type": "citations_delta", "citation": {"url": "u"}}, {"type": "never_seen"}, index=2,
    )  # fmt: skip
    merged = merge(
        START, *block(search, {"type": "input_json_delta", "partial_json": '{"query":"x"}'}), *block(found, index=1),
        *cited, *call("{}", index=3, caller={"type": "code_execution", "tool_id": "s"}), end("tool_use"), STOP,
    )  # fmt: skip

    assert (merged.text, len(merged.tool_calls)) == ("Rain.", 1)
    assert merged.items is not None
    assert merged.items.items == [
        {**search, "input": {"query": "x"}},
        found,
        {"type": "text", "text": "Rain.", "citations": [{"url": "u"}]},
        {"type": "tool_use", "caller": {"type": "code_execution", "tool_id": "s"}},
    ]


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("refusal", "refusal"),
        ("model_context_window_exceeded", "length"), ("something_new", "something_new"),
    ],
)  # fmt: skip
def test_stop_reason_becomes_a_finish_reason(reason: str, finish_reason: str) -> None:
    assert merge(START, end(reason), STOP).finish_reason == finish_reason


def test_explanation_of_a_refusal_is_its_text_if_it_has_none() -> None:
    details = {"category": "x", "explanation": "Not this."}

    assert merge(START, end("refusal", stop_details=details), STOP).refusal == "Not this."
    merged = merge(START, *text("Well"), end("refusal", stop_details=details), STOP)
    assert (merged.text, merged.refusal, merged.finish_reason) == ("Well", "", "refusal")


def test_usage_counts_the_cache_as_a_part_of_the_prompt() -> None:
    """The last counts replace those of the start, even by zero."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 0, "cache_read_input_tokens": 9}}}
    usage = {
        "input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5, "output_tokens": 6,
        "output_tokens_details": {"thinking_tokens": 2},
    }  # fmt: skip
    tokens = merge(start, *text("Hi"), end(usage=usage), STOP).tokens

    assert tokens is not None
    assert tokens.model_dump(exclude_none=True) == {
        "prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18, "cached_tokens": 4, "cache_write_tokens": 5,
        "reasoning_tokens": 2,
    }  # fmt: skip


def test_paused_turn_continues_as_one_answer() -> None:
    reader, merger = MessagesReader(10_000), DeltaMerger()
    body = {"messages": [{"role": "user", "content": []}]}
    for number in range(3):
        assert not merger.result().finish_reason
        reason = "end_turn" if number == 2 else "pause_turn"
        read(reader, merger, frames(START, *text(f"part {number}. "), end(reason), STOP))
        continued = reader.continuation(body)
        if continued is not None:
            body = continued
    merged = merger.result()

    assert merged.text == "part 0. part 1. part 2. "
    assert merged.finish_reason == "stop"
    assert merged.tokens is not None
    assert (merged.tokens.prompt_tokens, merged.tokens.completion_tokens) == (30, 15)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant"]
    assert [b["text"] for b in body["messages"][1]["content"]] == ["part 0. ", "part 1. "]


def test_turn_that_pauses_forever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_stream, "CONTINUATIONS_MAX", 1)
    reader, merger = MessagesReader(10_000), DeltaMerger()
    for _ in range(2):
        read(reader, merger, frames(START, *text("x"), end("pause_turn"), STOP))
        continued = reader.continuation({"messages": []})

    assert continued is None
    assert merger.result().finish_reason == "pause_turn"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error", "message": "Overloaded", "details": None}, ModelUnavailable),
        ({"type": "api_error", "message": "x"}, ModelUnavailable),
        ({"type": "timeout_error", "message": "x"}, ModelUnavailable),
        ({"type": "rate_limit_error", "message": "x"}, ModelUnavailable),
        ({"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}, ModelRejected),
        ({"type": "billing_error", "message": "x"}, ModelRejected),
        ({"type": "authentication_error", "message": "x"}, ModelUnauthorized),
        ({"type": "invalid_request_error", "message": "x"}, ModelRejected),
    ],
)
def test_error_in_the_stream_fails_the_request(error: Event, kind: type) -> None:
    with pytest.raises(ModelError) as failure:
        merge(START, *text("Hel"), {"type": "error", "error": error, "request_id": "r"})

    assert type(failure.value) is kind


@pytest.mark.parametrize("events", [[START, *text("Hel")], [START, *text("Hi"), end()], [START]])
def test_stream_without_message_stop_is_incomplete(events: list[Event]) -> None:
    with pytest.raises(ModelUnavailable, match="too early"):
        merge(*events)


def test_done_of_a_gateway_is_the_end() -> None:
    done = b"event: data\ndata: [DONE]\n\n"

    assert merge(body=frames(START, *text("Hi"), end(), STOP) + done).text == "Hi"
    assert merge(body=frames(START, *text("Hi"), end()) + done).text == "Hi"


def test_unknown_events_pings_and_padding_are_tolerated() -> None:
    body = frames(START, {"type": "ping"}, {"type": "never_seen", "message": "x"}, *text("Hi"), end(), STOP)

    assert merge(body=body.replace(b"}\n\n", b"}     \n\n")).text == "Hi"


def test_output_limit_counts_what_is_kept_for_the_provider() -> None:
    """Such as the input and the results of a search that the provider makes itself."""
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    for events in (
        block(search, *[{"type": "input_json_delta", "partial_json": "x" * 1000}] * 20),
        block({"type": "text"}, *[{"type": "citations_delta", "citation": "x" * 1000}] * 20),
        block({"type": "web_search_tool_result", "content": "x" * 20_000}),
        block(THINKING, *[{"type": "signature_delta", "signature": "x" * 1000}] * 20),
        block({"type": "compaction"}, *({"type": "compaction_delta", f"field_{n}": "x" * 1000} for n in range(20))),
    ):
        with pytest.raises(ModelOutputTooLong):
            merge(START, *events)
