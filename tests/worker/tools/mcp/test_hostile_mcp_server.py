"""MCP servers that break the protocol: each costs what is broken, and nothing else.

The servers answer in this process, below the SDK's client: a function from a request to its result.
"""

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from mcp_types import jsonrpc_message_adapter as adapter

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.net import AddressPolicy
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.mcp import mcp_http, mcp_listing, mcp_pages, mcp_pipes, mcp_source, mcp_transport
from stagebus.worker.tools.mcp.mcp_messages import ServerMessages, says_session_is_lost, without_lone_surrogates
from stagebus.worker.tools.mcp.mcp_source import McpSource
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources_file import McpEntry
from stagebus.worker.tools.tool_context import ToolContext
from tests.support.recorded_inputs import CASES
from tests.support.waiting import until, until_equal

OBJECT = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
GOOD = {"name": "good", "description": "A good tool.", "inputSchema": OBJECT}
SAFE = {**GOOD, "annotations": {"readOnlyHint": True}}
ANSWER = {"content": [{"type": "text", "text": "42"}]}
INITIALIZED = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "s", "version": "1"},
}

Send = Callable[[object], object]


class RpcError(Exception):
    """An error that a server answers."""


class FakeServer:
    """A server of the older protocol. Tests replace its `list`, `call` or `other`."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.greeting: dict = INITIALIZED
        self.list: Callable[[dict], object] = lambda _: {"tools": [GOOD]}
        self.call: Callable[[dict], object] = lambda _: ANSWER
        self.began: Callable[[Send], object] = lambda _: None  # after each connection

    def answer(self, method: str, params: dict) -> object:
        match method:
            case "initialize":
                return self.greeting
            case "tools/list":
                return self.list(params)
            case "tools/call":
                return self.call(params)
        raise RpcError(-32601, "Method not found")

    @asynccontextmanager
    async def open_pipes(self, *_: object) -> AsyncIterator[tuple[object, object]]:
        """Takes the place of the pipes of a process."""
        to_client, reading = anyio.create_memory_object_stream(0)
        writing, from_client = anyio.create_memory_object_stream(0)

        async def send(message: object) -> None:
            await to_client.send(mcp_pipes._parse(json.dumps({"jsonrpc": "2.0", **message}).encode()))

        async def serve() -> None:
            async with to_client:
                async for item in from_client:
                    request = item.message.model_dump(by_alias=True, exclude_unset=True)
                    self.asked[request.get("method", "")] += 1
                    if "id" not in request or "method" not in request:
                        continue
                    try:
                        result = self.answer(request["method"], request.get("params") or {})
                        if result is None:
                            return
                        await send({"id": request["id"], "result": result})
                    except RpcError as exc:
                        await send({"id": request["id"], "error": {"code": exc.args[0], "message": exc.args[1]}})
                    if request["method"] == "tools/list" and self.asked["tools/list"] == 1:
                        tasks.append(asyncio.ensure_future(self.began(send) or asyncio.sleep(0)))

        tasks = [asyncio.create_task(serve())]
        try:
            yield reading, writing
        finally:
            for stream in (to_client, reading, writing, from_client):
                stream.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def server(monkeypatch) -> FakeServer:
    monkeypatch.setattr(mcp_source, "BACKOFF_S", 0.05)
    monkeypatch.setattr(mcp_source, "LIST_MIN_S", 0.02)
    fake = FakeServer()
    monkeypatch.setattr(mcp_transport, "open_pipes", fake.open_pipes)
    return fake


@pytest.fixture
async def connect():
    registries = []

    async def connect(**entry) -> ToolRegistry:
        entry = entry or {"command": "server"}
        source = McpSource("s", McpEntry.model_validate(entry), Egress(AddressPolicy(("127.0.0.1",)), 2**20), 2**16)
        registry = ToolRegistry([], Settings(tool_timeout_s=10), sources=[source])
        registries.append(registry)
        await registry.start()
        return registry

    yield connect
    await asyncio.gather(*(registry.aclose() for registry in registries))


async def call(registry: ToolRegistry, name: str = "good"):
    return await registry.get(f"s__{name}").call('{"q": "x"}', ToolContext(run_id="r", call_id="c"))


@pytest.mark.parametrize(
    "greeting",
    [
        {"protocolVersion": "2025-06-18"},
        {**INITIALIZED, "capabilities": None, "serverInfo": {"name": 5, "version": None}, "instructions": 5},
        {**INITIALIZED, "capabilities": {"tools": None, "logging": 5}, "_meta": 5},
    ],
    ids=str,
)
async def test_greeting_needs_only_a_version(server, connect, greeting):
    server.greeting = greeting

    assert (await call(await connect())).content == "42"


# --- lists of tools -----------------------------------------------------------


async def test_bad_tools_are_left_out_and_logged_when_the_list_changes(server, connect, caplog):
    server.list = lambda _: {"tools": [None, {"name": "bad"}, {"name": "worse", "inputSchema": None}, GOOD]}
    registry = await connect(command="server", requires_approval=["bad"])
    registry._sources[0]._wake.set()
    await until(lambda: server.asked["tools/list"] >= 2)

    assert registry.names() == ("s__good",)
    assert (await call(registry)).content == "42"
    assert "tool bad is left out: inputSchema: Field required" in caplog.text
    assert caplog.text.count("is left out") == 3


async def test_thousands_of_bad_tools_are_neither_kept_nor_logged_each(server, connect, caplog):
    bad = [{"name": f"bad{n}"} for n in range(3000)]
    server.list = lambda params: {"tools": [*bad, GOOD], "nextCursor": None if params.get("cursor") else "2"}
    registry = await connect()

    assert registry.names() == ("s__good",)
    assert caplog.text.count("left out") == mcp_source.LEFT_OUT_SHOWN_MAX + 1
    assert len(registry._sources[0]._found[2]) == mcp_listing.LEFT_OUT_MAX


async def test_schemas_are_made_fit_for_providers(server, connect):
    bare, union = {"type": "object"}, {**OBJECT, "anyOf": [{"required": ["q"]}]}
    array, big = {"type": "object", "properties": {"a": {"type": "array"}}}, {**OBJECT, "maximum": 2**70}
    schemas = {"bare": bare, "union": union, "array": array, "big": big}
    server.list = lambda _: {"tools": [{"name": name, "inputSchema": schema} for name, schema in schemas.items()]}
    registry = await connect()

    assert registry.get("s__bare").parameters == {"type": "object", "properties": {}}
    assert registry.get("s__union").parameters == OBJECT
    assert registry.get("s__array").parameters["properties"]["a"]["items"] == {}
    assert registry.get("s__big").parameters == OBJECT


async def test_tool_names_are_made_fit_and_the_first_of_two_equal_ones_is_offered(server, connect):
    names = ["a.b/c d", "x" * 90, "a b c d", "\u202e", "good", "good"]
    server.list = lambda _: {"tools": [{**GOOD, "name": name, "description": str(n)} for n, name in enumerate(names)]}
    called = []
    server.call = lambda params: called.append(params["name"]) or ANSWER
    registry = await connect()

    assert len(registry.names()) == len(set(registry.names())) == 5
    assert registry.get("s__good").description == "4"
    for name in registry.names():
        assert len(name) <= 64
        await registry.get(name).call('{"q": "x"}', ToolContext(run_id="r", call_id="c"))
    assert called == names[:5]


@pytest.mark.parametrize(
    ("cursors", "pages"),
    [
        ([""], 1),
        ([None], 1),
        ([5], 1),
        (["p2", "p2", "p2"], 2),
        (["p2", "p3", "p2", "p4"], 3),
    ],
    ids=str,
)
async def test_cursor_that_was_there_already_ends_the_list(server, connect, cursors, pages):
    following = iter(cursors)
    server.list = lambda _: {"tools": [GOOD], "nextCursor": next(following)}
    registry = await connect()

    assert registry.names() == ("s__good",)
    assert server.asked["tools/list"] == pages


async def test_empty_page_does_not_end_the_list(server, connect):
    server.list = lambda params: {"tools": [GOOD]} if params.get("cursor") else {"tools": None, "nextCursor": "2"}

    assert (await connect()).names() == ("s__good",)


@pytest.mark.parametrize("name", ["good", "t{n}", "excluded{n}"])
async def test_list_without_an_end_is_cut_off(server, connect, caplog, name):
    """Of each kind: the same tools, more tools, tools that are not offered. Each page names a new cursor."""
    number = iter(range(10**6))

    def listed(params: dict) -> object:
        page = [{**GOOD, "name": name.format(n=next(number))} for _ in range(20)]
        return {"tools": [*page, GOOD], "nextCursor": str(next(number))}

    server.list = listed
    registry = await connect(command="server", exclude=["excluded*"])

    assert "s__good" in registry.names()
    assert len(registry.names()) <= mcp_pages.TOOLS_MAX
    assert server.asked["tools/list"] <= mcp_pages.PAGES_MAX
    assert "left out" in caplog.text or "excluded" in name


async def test_slow_list_without_an_end_offers_what_came(server, connect, monkeypatch):
    monkeypatch.setattr(mcp_pages, "LIST_TIME_SHARE", 0.0)
    number = iter(range(10**6))
    server.list = lambda _: {"tools": [GOOD], "nextCursor": str(next(number))}

    assert (await connect()).names() == ("s__good",)
    assert server.asked["tools/list"] == 1


@pytest.mark.parametrize("result", [{"tools": {}}, {"tools": 5}, {}, {"tools": [GOOD], "ttlMs": "x"}], ids=str)
async def test_list_of_another_form_stops_nothing(server, connect, result):
    server.list = lambda _: result
    registry = await connect()

    assert set(registry.names()) <= {"s__good"}


# --- results and errors -------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({**ANSWER, "structuredContent": {"n": None}}, '42\n{"n":null}'),
        (ANSWER, "42"),
        ({"structuredContent": {"n": 42}}, '{"n":42}'),
        ({"content": [{"type": "json", "json": 42}]}, '{"type":"json","json":42}'),
        ({"content": "42"}, "42"),
        ({"content": "42", "isError": None, "_meta": 5}, "42"),
        ({"content": "cut \ud83d"}, "cut \ufffd"),
    ],
    ids=str,
)
async def test_result_off_its_schema_is_what_came(server, connect, result, told):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    server.list = lambda _: {"tools": [{**GOOD, "outputSchema": schema}]}
    server.call = lambda _: result

    assert await call(await connect()) == (told, False)


@pytest.mark.parametrize("code", [-32000, -32001, -32603, 0, 404])
async def test_error_is_told_in_the_servers_words(server, connect, code):
    def fail(_: dict) -> object:
        raise RpcError(code, "No such project; ask for list_projects first")

    server.call = fail
    registry = await connect()
    reply = await call(registry)

    assert reply.is_error
    assert reply.content == "s__good: No such project; ask for list_projects first"
    assert server.asked["tools/call"] == 1
    assert server.asked["initialize"] == 1


async def test_error_without_words_has_its_code(server, connect):
    def fail(_: dict) -> object:
        raise RpcError(-32005, "")

    server.call = fail

    assert (await call(await connect())).content == "s__good: the server answered with error -32005"


@pytest.mark.parametrize(("tool", "calls", "told"), [(SAFE, 2, "42"), (GOOD, 1, "lost during the call")])
async def test_call_that_the_connection_did_not_survive_is_repeated_if_it_may_be(server, connect, tool, calls, told):
    server.list = lambda _: {"tools": [tool]}
    server.call = lambda _: None if server.asked["tools/call"] == 1 else ANSWER
    reply = await call(await connect())

    assert told in reply.content
    assert server.asked["tools/call"] == calls


async def test_server_that_dies_at_every_call_is_asked_twice(server, connect):
    server.list = lambda _: {"tools": [SAFE]}
    server.call = lambda _: None
    reply = await call(await connect())

    assert reply.is_error
    assert server.asked["tools/call"] == 2


# --- floods -------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"method": "notifications/tools/list_changed"},
        {"id": 10**6, "result": {}},
        {"id": None, "error": {"code": 1, "message": ""}},
        {},
    ],
    ids=["notifications", "results of nothing", "errors of nothing", "noise"],
)
async def test_storm_of_messages_neither_repeats_listings_nor_holds_the_loop(server, connect, monkeypatch, message):
    monkeypatch.setattr(mcp_source, "LIST_MIN_S", 0.2)
    monkeypatch.setattr(mcp_transport, "UNASKED_MAX_PER_S", 200)
    times = []

    async def storm(send: Send) -> None:
        while True:
            await send(message)
            times.append(time.monotonic())

    server.began = storm
    registry = await connect()
    await until(lambda: len(times) > 300)

    assert times[300] - times[0] > 0.9, "the rest of the second is waited for"
    assert server.asked["tools/list"] <= 2 + (time.monotonic() - times[0]) / 0.2
    assert "s__good" in registry.names()


async def test_server_that_asks_and_takes_no_answer_is_disconnected(server, connect, caplog, monkeypatch):
    async def storm(send: Send) -> None:
        for number in range(1000):
            await send({"id": f"s{number}", "method": "ping"})

    @asynccontextmanager
    async def deaf(*_: object):
        async with pipes() as (reading, writing):
            yield reading, _Deaf(writing)

    pipes, server.began = server.open_pipes, storm
    monkeypatch.setattr(mcp_transport, "open_pipes", deaf)
    await connect()

    await until(lambda: "an MCP server is disconnected" in caplog.text)


class _Deaf:
    """A stream that takes requests, but no answers."""

    def __init__(self, stream: object) -> None:
        self._stream = stream

    async def send(self, item: object) -> None:
        if not hasattr(item.message, "method"):
            await asyncio.Event().wait()
        await self._stream.send(item)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    async def __aenter__(self) -> object:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stream.aclose()


async def test_noise_and_a_flood_on_standard_error_are_no_messages(connect, caplog):
    program = (
        "import json, sys\n"
        "print('\\x1b[32mready\\x1b[0m\\n\\nnull\\n[]\\n5', flush=True)\n"
        "print('e' * 300_000, 'line\\n' * 100_000, file=sys.stderr)\n"
        "for line in sys.stdin:\n"
        "    m = json.loads(line); print('got', m.get('method'), flush=True)\n"
        f"    r = {{'initialize': {INITIALIZED!r}, 'tools/list': {{'tools': [{GOOD!r}]}}, 'tools/call': {ANSWER!r}}}.get(m['method'])\n"
        "    if 'id' in m: print(json.dumps({'jsonrpc': '2.0', 'id': m['id'], 'result': r} if r else\n"
        "        {'jsonrpc': '2.0', 'id': m['id'], 'error': {'code': -32601, 'message': ''}}), flush=True)\n"
    )
    caplog.set_level(logging.INFO)
    registry = await connect(command=sys.executable, args=["-c", program])

    assert (await call(registry)).content == "42"
    await until(lambda: "further lines on its stderr are left out" in caplog.text)
    assert len(caplog.records) < 20 + 3 * mcp_pipes.STDERR_LINES_MAX_PER_S


# --- sessions over HTTP -------------------------------------------------------


class SessionServer:
    """A server over HTTP. `forget` ends its sessions; `refuse` is the status and body by which it says so."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.tool = GOOD
        self.refusal: tuple[int, str, bytes] = (404, "text/plain", b"")
        self.pause_s = 0.0

    def forget(self) -> None:
        self.sessions.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                body = await reader.readexactly(length)
                session = head.partition("mcp-session-id: ")[2].partition("\r\n")[0]
                status, kind, answer, extra = await self.answer(head, body, session)
                self.asked[str(status)] += 1
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{extra}".encode())
                writer.write(f"Content-Length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, head: str, body: bytes, session: str) -> tuple[int, str, bytes, str]:
        if not head.startswith("post"):
            return 405, "text/plain", b"", ""
        message = json.loads(body)
        method = message["method"]
        self.asked[method] += 1
        if method == "server/discover":
            return 400, "text/plain", b"", ""
        if method == "initialize":
            session = str(self.asked[method])
            self.sessions.add(session)
            return 200, *self.result(message, INITIALIZED), f"Mcp-Session-Id: {session}\r\n"
        if session not in self.sessions:
            return *self.refusal, ""
        if "id" not in message:
            return 202, "text/plain", b"", ""
        if method == "tools/call":
            await asyncio.sleep(self.pause_s)
        result = {"tools": [self.tool]} if method == "tools/list" else {"content": "cut \ud83d"}
        return 200, *self.result(message, result), ""

    @staticmethod
    def result(message: dict, result: object) -> tuple[str, bytes]:
        return "application/json", json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()


@pytest.fixture
async def sessions() -> AsyncIterator[tuple[SessionServer, str]]:
    server = SessionServer()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/mcp"


def rpc_error(code: int, message: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}).encode()


REFUSALS = [
    (404, "text/plain", b""),
    (404, "application/json", rpc_error(-32001, "Session not found")),
    (400, "application/json", rpc_error(-32000, "Bad Request: No valid session ID provided")),
    (400, "application/json", rpc_error(-32000, "Bad Request: Server not initialized")),
    (410, "text/html", b"<h1>Session expired</h1>"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
async def test_lost_session_is_replaced_and_the_call_repeated(sessions, connect, refusal):
    server, url = sessions
    registry = await connect(url=url)
    server.refusal = refusal
    server.forget()
    replies = await asyncio.gather(*(call(registry) for _ in range(3)))

    assert replies == [("cut \ufffd", False)] * 3
    assert server.asked["initialize"] == 2, "one new session for all calls"


async def test_server_that_knows_no_session_is_asked_twice(sessions, connect):
    server, url = sessions
    registry = await connect(url=url)
    server.answer, really = None, server.answer

    async def answer(head: str, body: bytes, session: str) -> tuple[int, str, bytes, str]:
        if b'"tools/call"' in body:
            server.asked["tools/call"] += 1
            return 404, "text/plain", b"", ""
        return await really(head, body, session)

    server.answer = answer
    reply = await call(registry)

    assert reply == ("s__good: the MCP server has ended the session", True)
    assert server.asked["tools/call"] == 2


@pytest.mark.parametrize(("tool", "calls"), [(SAFE, 2), (GOOD, 1)])
async def test_session_that_ended_by_words_alone_repeats_only_idempotent_calls(sessions, connect, tool, calls):
    """A status of 200 does not tell whether the tool was at work."""
    server, url = sessions
    server.tool = tool
    registry = await connect(url=url)
    really = server.answer

    async def answer(head: str, body: bytes, session: str) -> tuple[int, str, bytes, str]:
        if b'"tools/call"' in body and session == "1":
            server.asked["tools/call"] += 1
            error = {"code": -32000, "message": "Session not found"}
            return (
                200,
                "application/json",
                json.dumps({"jsonrpc": "2.0", "id": json.loads(body)["id"], "error": error}).encode(),
                "",
            )
        return await really(head, body, session)

    server.answer = answer
    reply = await call(registry)

    assert reply.content == ("cut \ufffd" if calls == 2 else "s__good: Session not found")
    assert server.asked["tools/call"] == calls
    await until_equal(lambda: server.asked["initialize"], 2)


@pytest.mark.parametrize(
    "refusal", [(401, "text/plain", b"session expired"), (400, "text/plain", b"bad arguments")], ids=str
)
async def test_other_refusals_do_not_end_the_session(sessions, connect, refusal):
    server, url = sessions
    registry = await connect(url=url)
    server.refusal, kept = refusal, set(server.sessions)
    server.forget()
    assert (await call(registry)).is_error
    server.sessions |= kept

    assert (await call(registry)).content == "cut \ufffd"
    assert server.asked["initialize"] == 1


async def test_slow_call_over_http_has_the_time_of_its_tool(sessions, connect, monkeypatch):
    monkeypatch.setattr(mcp_transport, "_WRITE_TIMEOUT_S", 0.4)
    server, url = sessions
    registry = await connect(url=url)
    server.pause_s = 0.6

    assert (await call(registry)).content == "cut \ufffd"
    assert server.asked["initialize"] == 1


@pytest.mark.parametrize("held", ["notifications/initialized", "DELETE"])
async def test_server_that_confirms_nothing_is_left(sessions, connect, monkeypatch, caplog, held):
    monkeypatch.setattr(mcp_http, "CONFIRM_MAX_S", 0.2)
    monkeypatch.setattr(mcp_http, "DELETE_MAX_S", 0.2)
    server, url = sessions
    really = server.answer

    async def answer(head: str, body: bytes, session: str) -> tuple[int, str, bytes, str]:
        if held.encode() in body or held.lower() in head:
            await asyncio.sleep(5)
        return await really(head, body, session)

    server.answer = answer
    started = time.monotonic()
    registry = await connect(url=url)
    await registry.aclose()

    assert time.monotonic() - started < 4
    assert ("next try in" in caplog.text) is (held != "DELETE")


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("Session not found", True), ("session 5f0c has been terminated", True), ("Missing session ID", True),
        ("Invalid session", True), ("Bad Request: Server not initialized", True), ("unknown tool", False),
        ("Invalid arguments: session_name is required", False), ("", False),
    ],
)  # fmt: skip
def test_words_that_end_a_session(text, is_lost):
    assert says_session_is_lost(text) is is_lost


@pytest.mark.parametrize(
    "value", ["\ud83d", "a\ud83d\ude00b", "\ud83d\ud83d\ude00", "\\ud83d", "\\\\\ud83d", "\u00e9\\"]
)
def test_half_a_surrogate_pair_is_replaced_and_nothing_else(value):
    expected = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    assert json.loads(without_lone_surrogates(json.dumps([value]).encode())) == [expected]


def test_requests_without_an_answer_are_forgotten():
    """Otherwise each call that timed out would stay in memory."""
    messages = ServerMessages(2**16)
    for number in range(10):
        messages.sent(adapter.validate_python({"jsonrpc": "2.0", "id": number, "method": "tools/call"}))
        cancelled = {"method": "notifications/cancelled", "params": {"requestId": number}}
        messages.sent(adapter.validate_python({"jsonrpc": "2.0", **cancelled}))

    assert not messages._plain_by_id


# --- recorded servers ---------------------------------------------------------

LEFT_OUT = {"null_schema", "no_schema", "null_tool", "null_desc_annot", "empty_schema", "string_schema"}
FITTED = {"bare_object", "no_items", "top_anyof", "null_required"}
RESULTS = {"struct_mismatch", "struct_missing", "json_block", "content_string", "no_content", "rpc_error_32000"}
LISTS = {"empty_cursor", "same_cursor", "same_cursor_slow", "noise", "dup"}


@pytest.mark.skipif(not (CASES / "mcp").exists(), reason="the recorded servers are not here")
async def test_recorded_servers(connect):
    kinds = sorted(LEFT_OUT | FITTED | RESULTS | LISTS)
    command = {"command": sys.executable}
    registries = await asyncio.gather(
        *(connect(**command, args=[str(CASES / "mcp" / "server.py"), kind]) for kind in kinds)
    )
    tools = {kind: set(registry.names()) for kind, registry in zip(kinds, registries, strict=True)}
    told = {kind: (await call(registry)).content for kind, registry in zip(kinds, registries, strict=True)}

    assert all("s__good" in names for names in tools.values())
    assert {kind: tools[kind] for kind in LEFT_OUT} == {kind: {"s__good"} for kind in LEFT_OUT}
    assert {kind: tools[kind] for kind in FITTED} == {kind: {"s__good", "s__bad"} for kind in FITTED}
    assert [kind for kind in kinds if "42" not in told[kind]] == ["rpc_error_32000"]
    assert "No such project" in told["rpc_error_32000"]
