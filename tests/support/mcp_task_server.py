"""An MCP server over HTTP whose tools run as tasks, in both forms of tasks, written to the protocol's text.

The SDK's server (2.3) has no tasks. Each task is a file in the folder, so it outlives the server. All tasks end when a file
`finish` appears there.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.waiting import until

EXTENSION = "io.modelcontextprotocol/tasks"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
MODERN = "2026-07-28"
SCHEMA = {"type": "object", "properties": {"how": {"type": "string"}}}
TOOLS = [
    {"name": "render", "description": "Takes hours.", "inputSchema": SCHEMA, "execution": {"taskSupport": "required"}},
    {"name": "measure", "description": "Takes a while.", "inputSchema": SCHEMA,
     "annotations": {"idempotentHint": True}, "execution": {"taskSupport": "optional"}},
    {"name": "quick", "description": "Is quick.", "inputSchema": SCHEMA},
]  # fmt: skip
RELATED = "io.modelcontextprotocol/related-task"


class RpcError(Exception):
    """An error that the server answers."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class TaskServer:
    """The server's state, which tests read and change; `form` is augmented (2025-11-25) or extension (2026-07-28)."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder = folder
        self.is_modern = form == "extension"
        self.sessions: set[str] = set()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.ttl_ms: int | None = 3_600_000
        self.poll_ms: int | None = None
        self.capabilities: dict[str, Any] = (
            {"tools": {}, "extensions": {EXTENSION: {}}}
            if self.is_modern
            else {"tools": {}, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}}
        )

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/mcp", self.serve, methods=["POST", "DELETE"])])

    def finish(self) -> None:
        """Ends all tasks."""
        (self.folder / "finish").touch()

    def tasks(self) -> list[dict[str, Any]]:
        """Returns all tasks, the oldest first."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*.task")]
        return sorted(found, key=lambda task: task["at"])

    async def serve(self, request: Request) -> Response:
        if request.method == "DELETE":
            return Response(status_code=204)
        message = json.loads(await request.body())
        method, params = message.get("method", ""), message.get("params") or {}
        session = request.headers.get("mcp-session-id")
        if not self.is_modern and method not in ("initialize", "server/discover") and session not in self.sessions:
            return Response(status_code=404)
        if "id" not in message:
            return Response(status_code=202)
        if self.is_modern and method.startswith("tasks/") and request.headers.get("mcp-name") != params["taskId"]:
            return Response(status_code=400)
        self.asked.append((method, params))
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        try:
            answer["result"] = self.answer(method, params)
        except RpcError as exc:
            answer["error"] = {"code": exc.code, "message": str(exc)}
        headers = {}
        if method == "initialize":
            headers["mcp-session-id"] = uuid4().hex
            self.sessions.add(headers["mcp-session-id"])
        return JSONResponse(answer, headers=headers)

    def answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "server/discover" if self.is_modern:
                return self._complete({"supportedVersions": [MODERN], "capabilities": self.capabilities})
            case "initialize" if not self.is_modern:
                info = {"name": "tasks", "version": "1"}
                return {"protocolVersion": "2025-11-25", "capabilities": self.capabilities, "serverInfo": info}
            case "tools/list":
                return self._complete({"tools": TOOLS})
            case "tools/call":
                return self._call(params)
        if method.startswith("tasks/"):
            return self._answer_about_task(method, self._look_up(params))
        raise RpcError(-32601, f"no method {method}")

    def _answer_about_task(self, method: str, task: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "tasks/get":
                return self._complete(self._state(task))
            case "tasks/result" if not self.is_modern:
                return self._result(task)
            case "tasks/cancel":
                if self._status(task) in ("completed", "failed", "cancelled"):
                    raise RpcError(-32602, "already ended")
                self._store({**task, "cancelled": True})
                return self._complete({} if self.is_modern else self._state({**task, "cancelled": True}))
        raise RpcError(-32601, f"no method {method}")

    def _complete(self, result: dict[str, Any]) -> dict[str, Any]:
        return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **result} if self.is_modern else result

    def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        name, arguments = params["name"], params.get("arguments") or {}
        is_asked = "task" in params
        if self.is_modern:
            capabilities = params["_meta"][CAPABILITIES_KEY]
            is_asked = name != "quick" and EXTENSION in capabilities.get("extensions", {})
        elif is_asked == (name == "quick") and name != "measure":
            raise RpcError(-32601, f"{name} must {'not ' if is_asked else ''}be called as a task")
        if not is_asked:
            return self._complete({"content": [{"type": "text", "text": f"{name} at once"}]})
        task = {"id": uuid4().hex, "at": time.time(), "name": name, "how": arguments.get("how", ""), "looks": 0}
        task["asked_ttl"] = params.get("task", {}).get("ttl")
        self._store(task)
        state = self._state(task)
        return {"resultType": "task", **state} if self.is_modern else {"task": state}

    def _look_up(self, params: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / f"{params['taskId']}.task"
        if not path.exists():
            raise RpcError(-32602, "Failed to retrieve task: Task not found")
        task: dict[str, Any] = json.loads(path.read_text())
        task["looks"] += 1
        self._store(task)
        return task

    def _store(self, task: dict[str, Any]) -> None:
        path = self.folder / f"{task['id']}.task"
        path.with_suffix(".new").write_text(json.dumps(task))
        path.with_suffix(".new").rename(path)

    def _status(self, task: dict[str, Any]) -> str:
        if task.get("cancelled"):
            return "cancelled"
        if not (self.folder / "finish").exists():
            return "working"
        return {"break": "failed", "raise": "failed", "ask": "input_required", "stop": "cancelled"}.get(
            task["how"], "completed" if task["how"] != "refuse" or self.is_modern else "failed"
        )

    def _state(self, task: dict[str, Any]) -> dict[str, Any]:
        status, ms = self._status(task), "Ms" if self.is_modern else ""
        at = "2026-12-01T10:00:00Z"
        state = {"taskId": task["id"], "status": status, "createdAt": at, "lastUpdatedAt": at, f"ttl{ms}": self.ttl_ms}
        if self.poll_ms is not None:
            state[f"pollInterval{ms}"] = self.poll_ms
        if status in ("failed", "cancelled", "input_required"):
            state["statusMessage"] = f"it is {status}"
        if self.is_modern and status == "completed":
            state["result"] = self._result(task)
        if self.is_modern and status == "failed":
            state["error"] = {"code": -32603, "message": "out of film"}
        return state

    def _result(self, task: dict[str, Any]) -> dict[str, Any]:
        if task["how"] == "raise":
            raise RpcError(-32603, "out of film")
        if task["how"] == "break":  # as servers of the Python SDK 1.26 do
            return {}
        result = {"content": [{"type": "text", "text": f"{task['name']} is done"}], "isError": task["how"] == "refuse"}
        return result if self.is_modern else {**result, "_meta": {RELATED: {"taskId": task["id"]}}}


@asynccontextmanager
async def serving(server: TaskServer) -> AsyncIterator[str]:
    """Serves the server on a free port of this process; returns its URL."""
    config = uvicorn.Config(server.app(), port=0, log_config=None, lifespan="off")
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running._serve())
    await until(lambda: running.started)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        running.should_exit = True
        await serving
