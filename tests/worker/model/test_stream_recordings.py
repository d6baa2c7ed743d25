"""Every recorded stream of the Responses and the Messages API is read as expected, however it is split.

For those whose next request was recorded, ours gives back the same reasoning and the same calls, in the same order.
"""

import json
import random
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.errors import ModelError
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from stagebus.worker.model.language import language_of
from tests.support.recorded_inputs import STREAMS

MANIFEST = STREAMS / "manifest.jsonl"
RECORDINGS = [json.loads(line) for line in MANIFEST.read_text().splitlines()] if MANIFEST.exists() else []
CONTINUED = [recording for recording in RECORDINGS if recording["next_request"]]
# Longer ones are split at a few places only.
SPLIT_MAX_BYTES = 1_200
FINISH_REASONS = {
    "completed": "stop", "end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "max_tokens": "length",
    "refusal": "refusal", "pause_turn": "pause",
}  # fmt: skip
INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}
REASONING_TYPES = ("reasoning", "thinking", "redacted_thinking")

pytestmark = pytest.mark.skipif(not RECORDINGS, reason=f"no recordings in {STREAMS}")


def read(recording: dict[str, Any], pieces: list[bytes]) -> tuple[MergedAnswer, str, dict[str, Any] | None]:
    """Returns the answer, how it ended, and the body that continues it after a pause."""
    reader, merger = language_of(recording["api"]).reader(2**23), DeltaMerger()
    ended = "done"

    def chunks() -> Iterator[dict[str, Any]]:
        for piece in pieces:
            yield from reader.feed(piece)
        yield from reader.finish()

    try:
        for chunk in chunks():
            merger.add(chunk)
    except ModelError as exc:
        ended = "cut" if "ended its answer too early" in str(exc) else "error"
    return merger.result(), ended, reader.continuation({"messages": []})


def raw(recording: dict[str, Any]) -> bytes:
    return (STREAMS / recording["file"]).read_bytes()


def digest(value: str) -> str:
    return sha256(value.encode()).hexdigest()[:16]


def hashes(items: list[dict[str, Any]]) -> list[str]:
    fields = ("encrypted_content", "signature", "data")
    own = [item for item in items if item.get("type") in REASONING_TYPES]
    return [digest(item[name]) for item in own for name in fields if item.get(name)]


def expected_hashes(expected: dict[str, Any]) -> list[str]:
    own = expected.get("reasoning_items") or expected.get("thinking_blocks") or []
    return [value for item in own for name, value in item.items() if name.endswith("sha256") and value]


def expected_finish(expected: dict[str, Any]) -> str | None:
    if expected["finish_reason"] == "incomplete":
        return INCOMPLETE[expected["incomplete_reason"]]
    if expected["finish_reason"] == "completed" and expected["tool_calls"]:
        return "tool_calls"
    return FINISH_REASONS[expected["finish_reason"]]


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording["file"])
def test_recorded_stream_is_read_as_expected(recording: dict[str, Any]) -> None:
    expected, kind = recording["expected"], recording["api"]
    merged, ended, continued = read(recording, [raw(recording)])

    assert ended == (expected["ends"] if expected["ends"] in ("error", "cut") else "done")
    streamed = "".join(part for part in (expected.get("text_parts") or [expected["text"]]) if part)
    phases = expected.get("phases") or []
    assert merged.text == (expected["text_parts"][-1] if len(phases) > 1 else streamed)
    assert merged.refusal == (expected["refusal"] or "")
    assert merged.reasoning == expected["reasoning_text"]
    if ended != "done":
        return
    if expected["finish_reason"] == "pause_turn":
        assert continued is not None
        assert hashes(continued["messages"][-1]["content"]) == expected_hashes(expected)
        return
    assert [(call.id, call.name) for call in merged.tool_calls] == [
        (call["id"], call["name"]) for call in expected["tool_calls"]
    ]
    if merged.finish_reason != "length" and "custom_tool_call" not in expected["items"]:
        for call, wanted in zip(merged.tool_calls, expected["tool_calls"], strict=True):
            assert json.loads(call.arguments) == wanted.get("input", json.loads(wanted["arguments"] or "{}"))
    assert merged.finish_reason == expected_finish(expected)
    if expected["finish_reason"] != "incomplete":
        assert hashes(merged.items.items if merged.items else []) == expected_hashes(expected)
    if (counted := expected["usage"]) is not None:
        usage = merged.tokens
        assert usage is not None
        beside = (counted["cached"] or 0) + (counted["cache_write"] or 0) if kind == "messages" else 0
        assert usage.prompt_tokens == counted["input"] + beside
        assert usage.completion_tokens == counted["output"]
        assert (usage.cached_tokens or 0) == (counted["cached"] or 0)
        assert (usage.cache_write_tokens or 0) == (counted["cache_write"] or 0)
        assert (usage.reasoning_tokens or 0) == (counted["reasoning"] or 0)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording["file"])
def test_recorded_stream_split_anywhere_is_read_the_same(recording: dict[str, Any]) -> None:
    body = raw(recording)
    whole = read(recording, [body])
    cuts = range(len(body)) if len(body) <= SPLIT_MAX_BYTES else random.Random(1).sample(range(len(body)), 5)

    assert read(recording, [body[i : i + 1] for i in range(len(body))]) == whole
    assert read(recording, [body.replace(b"\n", b"\r\n")]) == whole
    for cut in cuts:
        assert read(recording, [body[:cut], body[cut:]]) == whole


def given_back(api: str, body: dict[str, Any], start: int) -> list[str]:
    """Returns the reasoning, hosted tools and calls from one place of the conversation on, in order."""
    if api == "responses":
        items = body["input"][start:]
    else:
        items = [block for message in body["messages"][start:] for block in message["content"]]
    marks = []
    for item in items:
        kind = item.get("type")
        if kind in ("function_call", "tool_use"):
            arguments = item["input"] if "input" in item else json.loads(item["arguments"])
            marks.append(f"call {item['name']} {json.dumps(arguments, sort_keys=True)}")
        elif kind in ("function_call_output", "tool_result"):
            marks.append("result")
        elif kind not in (None, "message", "text", "image", "tool_search_output"):
            marks.append(f"{kind} {' '.join(hashes([item]))}".strip())
    return marks


def digested(mark: str) -> bool:
    return "sha256" in mark


@pytest.mark.parametrize("recording", CONTINUED, ids=lambda recording: recording["file"])
def test_next_request_gives_back_the_same_reasoning_and_calls(recording: dict[str, Any]) -> None:
    api, expected, theirs = recording["api"], recording["expected"], recording["next_request"]
    merged, _, continued = read(recording, [raw(recording)])
    route = ModelRoute("m", "p", "m", Abilities(api=api), {})
    language = language_of(api)
    if continued is not None:
        content = theirs["messages"][-1]["content"]
        assert [block["type"] for block in continued["messages"][-1]["content"]] == [b["type"] for b in content]
        return
    items = ModelItems(api=api, provider="p", model="m", items=merged.items.items) if merged.items else None
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in merged.tool_calls
    ]
    answer = {"role": "assistant", "content": merged.text or None, ORIGIN_KEY: MessageOrigin("p", items=items)}
    user = {"role": "user", "content": "hi"}
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "18"} for call in calls]
    messages = [user, answer | ({"tool_calls": calls} if calls else {}), *(results or [user])]
    ours = language.write({"messages": messages}, route)

    sent = given_back(api, ours, 1)
    assert [mark.split()[-1] for mark in sent if mark.startswith(REASONING_TYPES)] == expected_hashes(expected)
    assert [mark for mark in sent if mark.startswith("call")] == [
        f"call {call['name']} {json.dumps(call.get('input') or json.loads(call['arguments'] or '{}'), sort_keys=True)}"
        for call in expected["tool_calls"]
    ]
    start = recording["next_appended_from"]
    accepted = [mark for mark in given_back(api, theirs, start) if not digested(mark)]
    if any(mark.startswith("call") for mark in accepted):
        reasoned = any(mark.startswith(REASONING_TYPES) for mark in accepted)
        assert [m for m in sent if reasoned or not m.startswith(REASONING_TYPES)][: len(accepted)] == accepted
