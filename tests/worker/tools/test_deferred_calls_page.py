"""The tool of docs/deferred-calls.md does what the page says."""

import json
from pathlib import Path
from typing import Any

from stagebus.shared.config.settings import Settings
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred
from tests.support.shell import blocks

PAGE = (Path(__file__).parents[3] / "docs" / "deferred-calls.md").read_text()


async def test_tool_of_the_page_starts_something_and_defers_its_result() -> None:
    *_, source = blocks(PAGE, "python")
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(source, "docs/deferred-calls.md", "exec", dont_inherit=True), names)
    registry = ToolRegistry([names["render_video"]], Settings())
    context = ToolContext("r", "c", call_token="t", result_url="u")
    reply = await registry.get("render_video").call('{"scene": "sunset"}', context)
    await registry.aclose()

    assert reply == Deferred(expires_in=6 * 3600)
    assert [json.loads(text) for text in names["STARTED"]] == [{"scene": "sunset", "notify": "u", "token": "t"}]
