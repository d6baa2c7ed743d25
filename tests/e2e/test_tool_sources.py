"""Runs that call tools of MCP servers, over the whole system."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.mcp_task_server import TaskServer, serving
from tests.support.processes import children_of, is_alive
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import ROOT, System
from tests.support.waiting import until

TOOLS = f"""
[mcp.ref]
command = {sys.executable!r}
args = ["-m", "tests.support.mcp_server", "stdio"]
cwd = {str(ROOT)!r}
include = ["add", "count"]

[mcp.long]
url = "URL"
include = ["render"]
"""


def calling(tool: str, prompt: str) -> dict[str, Any]:
    choice = {"type": "function", "function": {"name": tool}}
    return {"user_prompt": prompt, "tools": [tool], "tool_choice": choice}


async def park(system: System, http: httpx.AsyncClient) -> str:
    """Creates a run whose call is a task, and waits until it is parked."""
    run_id = await post_run(system.url, calling("long__render", "Render {}"))

    async def is_parked() -> bool:
        return bool((await http.get(f"{system.url}/runs/{run_id}")).json()["status"] == "parked")

    await until(is_parked)
    return run_id


@pytest.mark.faults
async def test_mcp_tools_are_called_servers_end_with_the_worker_and_tasks_do_not(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    tasks = TaskServer(tmp_path, "augmented")
    async with serving(tasks) as url, httpx.AsyncClient() as http:
        file = tmp_path / "tools.toml"
        file.write_text(TOOLS.replace("URL", url))
        system = await start(env={"STAGEBUS_TOOLS_FILE": str(file), "STAGEBUS_EGRESS_ALLOW": "127.0.0.1"})
        tools = [tool["name"] for tool in (await http.get(f"{system.url}/tools")).json()["tools"]]
        unknown = await http.post(f"{system.url}/runs", json={"user_prompt": "x", "tools": ["ref__wait"]})
        run_id = await post_run(system.url, calling("ref__count", 'Count to {"to": 3}'))
        client = await StrictClient([system.url], run_id).follow()
        (result,) = (event.data for event in client.events if event.event == "tool_result")

        assert tools == ["ask_user", "get_weather", "long__render", "ref__add", "ref__count"]
        assert unknown.status_code == 422
        assert (result["name"], result["content"], result["is_error"]) == ("ref__count", "counted", False)
        assert [e.data["fraction"] for e in client.events if e.event == "tool_progress"][-1] == 1.0
        assert client.events[-1].event == "done"

        cancelled = await park(system, http)
        (await http.post(f"{system.url}/runs/{cancelled}/cancel")).raise_for_status()
        await until(lambda: tasks.tasks()[0].get("cancelled"))

        run_id = await park(system, http)
        (server,) = (
            pid for pid, line in children_of(system.workers[0].pid).items() if "tests.support.mcp_server stdio" in line
        )
        await system.workers[0].kill()
        await until(lambda: not is_alive(server))
        tasks.sessions.clear()
        tasks.finish()
        system.add_worker()
        client = await StrictClient([system.url], run_id).follow()
        (result,) = (event.data for event in client.events if event.event == "tool_result")

        assert (result["content"], result["is_error"]) == ("render is done", False)
        assert [event.event for event in client.events].count("call_deferred") == 1
        assert client.events[-1].event == "done"
        assert len(tasks.tasks()) == 2, "the task of the dead worker was not begun again"
