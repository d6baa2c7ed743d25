"""Junk at the readers of typed events: each event has a known type, and fields of any kind."""

from typing import Any

import orjson
from hypothesis import strategies as st

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import Api, ModelItems
from stagebus.shared.errors import ModelError
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin
from stagebus.worker.model.delta_merger import DeltaMerger
from stagebus.worker.model.language import language_of

TYPES: dict[Api, list[str]] = {
    "responses": [
        "response.created", "response.output_item.added", "response.output_text.delta", "response.output_text.done",
        "response.reasoning_summary_text.delta", "response.function_call_arguments.delta", "response.refusal.done",
        "response.function_call_arguments.done", "response.output_item.done", "response.completed", "response.failed",
        "response.incomplete", "error", "keepalive",
    ],
    "messages": [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop", "ping", "error", "message",
    ],
}  # fmt: skip
KINDS = ["message", "reasoning", "function_call", "web_search_call", "text", "thinking", "tool_use", "server_tool_use",
    "output_text", "text_delta", "input_json_delta", "signature_delta", "citations_delta", "compaction_delta"]  # fmt: skip
WORDS = st.sampled_from(
    [*KINDS, "completed", "incomplete", "failed", "pause_turn", "tool_use", "{}", '{"a":1}', "f", ""]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(["type", "id", "call_id", "name", "arguments", "input", "text", "content", "summary", "status",
            "encrypted_content", "thinking", "signature", "usage", "stop_reason", "output", "error", "input_tokens",
            "output_tokens", "partial_json", "phase", "output_tokens_details", "incomplete_details"]),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
FIELDS = ["item", "delta", "response", "content_block", "message", "output_index", "content_index", "summary_index",
    "index", "text", "arguments", "error", "usage", "content", "code"]  # fmt: skip


def _events(api: Api) -> st.SearchStrategy[tuple[Api, list[dict[str, Any]]]]:
    fields = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6)
    event = st.tuples(st.sampled_from(TYPES[api]), fields).map(lambda made: {**made[1], "type": made[0]})
    return st.tuples(st.just(api), st.lists(event, max_size=6))


EVENTS = _events("responses") | _events("messages")


def take_events(case: tuple[Api, list[dict[str, Any]]]) -> bool:
    """Reads the events and writes a request with the answer's items; False if the reader refuses them."""
    api, events = case
    language, merger = language_of(api), DeltaMerger()
    reader = language.reader(100_000)
    is_taken = True
    try:
        for event in events:
            for chunk in reader.feed(
                b"data: %b\n\n" % orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS)
            ):
                merger.add(chunk)
        for chunk in reader.finish():
            merger.add(chunk)
    except (ModelError, orjson.JSONEncodeError):
        is_taken = False
    reader.continuation({"messages": []})
    merged = merger.result()
    assert merged.tokens is None or merged.tokens.total_tokens >= 0
    items = ModelItems(api, "p", "m", merged.items.items if merged.items else [])
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in merged.tool_calls
    ]
    said = {
        "role": "assistant",
        "content": merged.text,
        "tool_calls": calls,
        ORIGIN_KEY: MessageOrigin("p", items=items),
    }
    route = ModelRoute("m", "p", "m", Abilities(api=api), {})
    orjson.dumps(language.write({"messages": [{"role": "user", "content": "x"}, said]}, route))
    return is_taken
