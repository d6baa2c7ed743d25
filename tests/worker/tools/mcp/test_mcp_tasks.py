"""Calls of an MCP server that run as tasks, in both forms of tasks, with the server's real answers over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from mcp_types import Tool, ToolExecution

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.net import AddressPolicy
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.mcp import mcp_source, mcp_tasks
from stagebus.worker.tools.mcp.mcp_source import McpSource
from stagebus.worker.tools.mcp.mcp_task_terms import TaskTerms
from stagebus.worker.tools.mcp.mcp_tasks import TaskProtocol
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources import TaskLook
from stagebus.worker.tools.sources_file import McpEntry
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import RemoteTask, ToolReply
from tests.support.mcp_task_server import TaskServer, serving


class Connected:
    """A server of tasks, and the tools of a worker that is connected to it."""

    def __init__(self, tasks: TaskServer, url: str) -> None:
        self.tasks = tasks
        self._url = url
        self.registries: list[ToolRegistry] = []

    async def connect(self, **entry: object) -> McpSource:
        parsed = McpEntry.model_validate({"url": self._url, **entry})
        source = McpSource("ref", parsed, Egress(AddressPolicy(("127.0.0.1",)), 2**20), 2**16, task_wait_s=600)
        self.registry = ToolRegistry([], Settings(), sources=[source])
        self.registries.append(self.registry)
        await self.registry.start()
        return source

    async def call(self, name: str, how: str = "") -> ToolReply | RemoteTask:
        tool = self.registry.get(f"ref__{name}")
        return await tool.call(f'{{"how": "{how}"}}', ToolContext(run_id="r", call_id="c"))


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable]:
    async with AsyncExitStack() as stack:

        async def serve(form: str) -> Connected:
            tasks = TaskServer(tmp_path, form)
            connected = Connected(tasks, await stack.enter_async_context(serving(tasks)))
            stack.push_async_callback(close, connected)
            return connected

        yield serve


async def close(connected: Connected) -> None:
    for registry in connected.registries:
        await registry.aclose()


@pytest.fixture(params=["augmented", "extension"])
async def server(request: pytest.FixtureRequest, serve: Callable) -> Connected:
    return await serve(request.param)


async def test_task_is_begun_looked_at_and_its_result_fetched(server: Connected) -> None:
    server.tasks.poll_ms = 5000
    source = await server.connect()
    task = await server.call("render")

    assert source.offers_tasks
    assert task == RemoteTask(source="ref", task_id=server.tasks.tasks()[0]["id"], poll_s=5, expires_in=600)
    assert await source.look_at_task(task.task_id) == TaskLook(poll_s=5)
    server.tasks.finish()
    assert await source.look_at_task(task.task_id) == TaskLook(ToolReply("render is done"))
    assert await server.call("quick") == ToolReply("quick at once")


async def test_tasks_that_fail_give_an_error(server: Connected) -> None:
    source = await server.connect()
    tasks = {how: await server.call("render", how) for how in ("refuse", "raise", "break", "stop", "ask")}
    server.tasks.finish()
    looks = {how: await source.look_at_task(task.task_id) for how, task in tasks.items()}

    assert all(look.reply.is_error for look in looks.values())
    assert {how: look.reply.content for how, look in looks.items()} == {
        "refuse": "render is done",
        "raise": "out of film",
        "break": "out of film" if server.tasks.is_modern else "it is failed",
        "stop": "the server cancelled the task of this call: it is cancelled",
        "ask": "this call was stopped: its server asks for further input, which cannot be given; call the tool with all "
        "that it needs: it is input_required",
    }
    assert [how for how, look in looks.items() if look.must_cancel] == ["ask"]


async def test_task_is_cancelled_once_at_the_server(server: Connected) -> None:
    source = await server.connect()
    task = await server.call("render")
    for task_id in (task.task_id, task.task_id, "nowhere"):
        await source.cancel_task(task_id)
    lost = await source.look_at_task("nowhere")

    assert server.tasks.tasks()[0]["cancelled"]
    assert lost.reply == ToolReply(
        "the server no longer has the task of this call: Failed to retrieve task: Task not found", is_error=True
    )


async def test_server_s_ttl_limits_the_wait(serve: Callable) -> None:
    server = await serve("augmented")
    await server.connect()
    for server.tasks.ttl_ms, wait_s in ((None, 600), (60_000, 60), (10**9, 600), (0, 1)):
        assert (await server.call("render")).expires_in == wait_s

    assert server.tasks.tasks()[0]["asked_ttl"] == 600_000


async def test_client_chooses_where_the_server_lets_it(serve: Callable) -> None:
    server = await serve("augmented")
    await server.connect(tasks=["rend*"], task_timeout_s=30)

    assert await server.call("measure") == ToolReply("measure at once")
    assert (await server.call("render")).expires_in == 30
    await server.connect()
    assert isinstance(await server.call("measure"), RemoteTask)


async def test_capability_as_servers_of_the_python_sdk_declare_it_counts(serve: Callable) -> None:
    """Those of its version 1.26 omit `call`."""
    server = await serve("augmented")
    server.tasks.capabilities = {"tools": {}, "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {}}}}
    await server.connect()

    assert isinstance(await server.call("render"), RemoteTask)


async def test_client_that_wants_no_tasks_does_not_declare_the_extension(serve: Callable) -> None:
    server = await serve("extension")
    await server.connect(tasks=[])

    assert await server.call("render") == ToolReply("render at once")


async def test_only_calls_that_may_become_tasks_can_wait(serve: Callable) -> None:
    """The others cost what they did."""
    server = await serve("augmented")
    await server.connect()
    waiting = [name for name in server.registry.names() if server.registry.get(name).may_wait]

    assert waiting == ["ref__render", "ref__measure"]


async def test_tool_is_called_as_usual_at_a_server_without_the_capability(serve: Callable) -> None:
    """Whatever the tool says: so the protocol wants it."""
    server = await serve("augmented")
    server.tasks.capabilities = {"tools": {}}
    source = await server.connect()
    reply = await server.call("render")

    assert not source.offers_tasks
    assert (reply.is_error, server.tasks.asked[-1][1].get("task")) == (True, None)


async def test_task_outlives_the_session_that_began_it(serve: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_source, "BACKOFF_S", 0.01)
    server = await serve("augmented")
    source = await server.connect()
    task = await server.call("render")
    server.tasks.finish()
    server.tasks.sessions.clear()

    assert await source.look_at_task(task.task_id) == TaskLook(ToolReply("render is done"))


def test_times_and_ids_that_cannot_be_used_count_as_absent() -> None:
    hostile = {
        "taskId": "x" * 1025,
        "status": 7,
        "ttl": -1,
        "pollInterval": True,
        "statusMessage": ["no"],
        "error": "no",
    }
    assert mcp_tasks.parse_task(hostile) == mcp_tasks.Task("", "7", "", None, None, None, None)
    assert mcp_tasks.parse_task({"ttl": 10**400, "pollInterval": float("nan")}).ttl_s == 10**12
    with pytest.raises(ToolError, match="without a usable id"):
        TaskTerms(McpEntry(url="http://127.0.0.1"), 60).reply_of("ref", mcp_tasks.parse_task(hostile))


def test_tools_of_a_program_that_only_run_as_tasks_cannot_be_called() -> None:
    support = [{"taskSupport": support} for support in ("required", "optional", "forbidden")]
    tools = [Tool(name=s["taskSupport"], input_schema={}, execution=ToolExecution.model_validate(s)) for s in support]
    program = TaskTerms(McpEntry(command="server"), 60, TaskProtocol.AUGMENTED)

    assert list(program.find_impossible(tools)) == ["required"]
    assert not any(program.must_ask(tool) or program.may_become_task(tool) for tool in tools)
    assert program._replace(protocol=None).find_impossible(tools) == {}
