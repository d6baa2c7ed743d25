"""One trace for each run, over all processes that work on it."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.otlp_receiver import OtlpReceiver
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import ROOT
from tests.support.waiting import until

CLIENT_TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUICK, SLOW = "demo:delay_ms=1", "demo:delay_ms=10,tokens=100"
TOOLS = f"""
[mcp.ref]
command = {sys.executable!r}
args = ["-m", "tests.support.mcp_server", "stdio"]
cwd = {str(ROOT)!r}
include = ["add"]
"""


@pytest.mark.faults
async def test_run_is_one_trace_over_a_killed_worker(start, tmp_path: Path) -> None:
    file = tmp_path / "tools.toml"
    file.write_text(TOOLS)
    with OtlpReceiver() as otlp:
        env = {**otlp.env, "STAGEBUS_OTEL_METRICS": "true", "STAGEBUS_TOOLS_FILE": str(file)}
        system = await start(workers=2, env=env)
        body = {
            "user_prompt": 'Add {"a": 2, "b": 3}',
            "tools": ["ref__add"],
            "tool_choice": {"type": "function", "function": {"name": "ref__add"}},
            "model": {"extraction": QUICK, "synthesis": SLOW},
        }
        run_id = await post_run(system.url, body, traceparent=f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01")
        client = StrictClient([system.url], run_id)
        following = asyncio.create_task(client.follow())
        await client.until(lambda seen: "synthesis" in {event.data.get("stage_id") for event in seen.events})
        await until(lambda: otlp.named("execute_tool ref__add"))
        await (await system.holder_of(run_id)).kill()
        await following
        await until(lambda: otlp.named("attempt"))
        await until(lambda: "stagebus_runs_ended" in otlp.metric_names)

    (created,) = otlp.named("POST /runs")
    (queue,), (attempt,) = otlp.named("queue"), otlp.named("attempt")
    (tool,), (mcp_call,) = otlp.named("execute_tool ref__add"), [s for s in otlp.spans if "tools/call" in s.name]
    extraction_model, synthesis_model = otlp.named(f"chat {QUICK}"), otlp.named(f"chat {SLOW}")
    (extraction,), (synthesis,), (tools,) = otlp.named("extraction"), otlp.named("synthesis"), otlp.named("tools")
    of_run = [
        created,
        queue,
        attempt,
        tool,
        mcp_call,
        *extraction_model,
        *synthesis_model,
        extraction,
        synthesis,
        tools,
    ]

    assert client.events[-1].event == "done"
    assert {span.trace_id for span in of_run} == {CLIENT_TRACE}
    assert created.parent_id == CLIENT_SPAN
    assert created.attributes["stagebus.run.id"] == run_id
    assert {queue.parent_id, attempt.parent_id} == {created.span_id}
    # The killed attempt did not send its own span; those below it name it as their parent, and the next one links to it.
    assert attempt.links == [extraction.parent_id] == [tools.parent_id]
    assert synthesis.parent_id == attempt.span_id
    assert attempt.attributes["stagebus.run.status"] == "succeeded"
    assert [span.parent_id for span in extraction_model] == [extraction.span_id]
    assert synthesis_model[-1].parent_id == synthesis.span_id
    assert tool.parent_id == tools.span_id
    assert mcp_call.parent_id == tool.span_id
    assert extraction_model[0].attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert synthesis_model[-1].attributes["gen_ai.usage.output_tokens"] > 0
    assert not [span for span in otlp.spans if "content" in str(span.attributes) or "Add {" in str(span.attributes)]
    assert {span.service for span in of_run} == {"stagebus-gateway", "stagebus-worker"}
    assert "stagebus_http_requests" in otlp.metric_names
