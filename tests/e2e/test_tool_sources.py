"""A run that calls a tool of an MCP server, over the whole system."""

import sys
from pathlib import Path

import httpx
import pytest

from tests.support.processes import children_of, is_alive
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import ROOT
from tests.support.waiting import until

TOOLS = f"""
[mcp.ref]
command = {sys.executable!r}
args = ["-m", "tests.support.mcp_server", "stdio"]
cwd = {str(ROOT)!r}
include = ["add", "count"]
"""


@pytest.mark.faults
async def test_mcp_tool_is_called_and_its_server_ends_with_the_worker(start, tmp_path: Path) -> None:
    file = tmp_path / "tools.toml"
    file.write_text(TOOLS)
    system = await start(env={"STAGEBUS_TOOLS_FILE": str(file)})
    async with httpx.AsyncClient(base_url=system.url) as http:
        tools = [tool["name"] for tool in (await http.get("/tools")).json()["tools"]]
        unknown = await http.post("/runs", json={"user_prompt": "x", "tools": ["ref__wait"]})
    choice = {"type": "function", "function": {"name": "ref__count"}}
    body = {"user_prompt": 'Count to {"to": 3}', "tools": ["ref__count"], "tool_choice": choice}
    client = await StrictClient([system.url], await post_run(system.url, body)).follow()
    (result,) = (event.data for event in client.events if event.event == "tool_result")

    assert tools == ["ask_user", "get_weather", "ref__add", "ref__count"]
    assert unknown.status_code == 422
    assert (result["name"], result["content"], result["is_error"]) == ("ref__count", "counted", False)
    assert [e.data["fraction"] for e in client.events if e.event == "tool_progress"][-1] == 1.0
    assert client.events[-1].event == "done"

    (server,) = (
        pid for pid, line in children_of(system.workers[0].pid).items() if "tests.support.mcp_server stdio" in line
    )
    await system.workers[0].kill()
    await until(lambda: not is_alive(server))
