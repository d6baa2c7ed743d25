"""OpenAI's SDK for JavaScript against the Responses and the chat completions view."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from stagebus.gateway.streaming.hub import Hub
from tests.support.runs_by_hand import RunByHand
from tests.support.scripted_log import ANSWER, EVENTS, RESTART, frames_of, tell
from tests.support.third_party import node_driver
from tests.support.waiting import until_equal

Claim = Callable[[str], Awaitable[RunByHand]]
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


async def test_openai_node_streams_resumes_waits_and_cancels(
    url: str, http: httpx.AsyncClient, hub: Hub, claim: Claim, run: RunByHand
) -> None:
    async def watched() -> RunByHand:
        """Claims the run that the client's request has made."""
        await until_equal(lambda: hub.open_streams, 1)
        return await claim(next(iter(hub._streams_by_run)))

    async with node_driver("openai_views.mjs", url) as node:
        asking = asyncio.create_task(node.ask(do="stream", input="Hello"))
        made = await watched()
        await tell(made)
        streamed = await asking
        await tell(run)
        hopped = (await node.ask(do="hop", id=f"resp_{run.run_id}"))["events"]
        whole = frames_of((await http.get(f"/v1/responses/resp_{run.run_id}?stream=true")).text)

        await until_equal(lambda: hub.open_streams, 0)
        asking = asyncio.create_task(node.ask(do="create", params={"model": "demo", "input": "Hi"}))
        await tell(await watched())
        waited = await asking
        background = await node.ask(do="create", params={"model": "demo", "input": "Hi", "background": True})
        cancelled = await node.ask(do="cancel", id=background["id"])

        await until_equal(lambda: hub.open_streams, 0)
        asking = asyncio.create_task(node.ask(do="chat", params=CHAT))
        chat_run = await watched()
        for event in [*EVENTS[:15], *EVENTS[RESTART + 1 :]]:
            await chat_run.put(event)
        await chat_run.end()
        chatted = await asking
        await until_equal(lambda: hub.open_streams, 0)
        asking = asyncio.create_task(node.ask(do="chat", params=CHAT))
        await tell(await watched(), 0, RESTART + 1)
        voided = await asking
        models = await node.ask(do="models")

    assert streamed["text"] == waited["output_text"] == f"I look it up.{ANSWER}"
    assert streamed["types"][-1] == "response.completed"
    assert hopped == [data for _, data in whole]
    assert (background["status"], cancelled["status"]) == ("queued", "cancelled")
    assert chatted["text"] == f"I look it up.\n\n{ANSWER}"
    assert voided["code"] == "stage_restarted"
    assert models["ids"] == ["demo"]
