"""Webhooks and the feed of runs with real processes, some of which die."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from stagebus.client import AsyncStagebus
from stagebus.shared.storage import keys
from stagebus.shared.store.webhook_deliveries import count_open
from tests.support.strict_client import get_run, post_run
from tests.support.system import System
from tests.support.waiting import until, until_equal
from tests.support.webhook_receiver import SECRET, Message, WebhookReceiver, answer, receiving

WEATHER = {"user_prompt": "What is the weather in Paris?", "tools": ["get_weather"]}
QUICK = {"user_prompt": "Hi", "tools": [], "synthesis": False}


def write_file(tmp_path: Path, receiver: WebhookReceiver, **paths: str) -> dict[str, str]:
    """Writes a webhooks file, and returns the environment of processes that read it."""
    endpoints = [
        f'[endpoints.{name}]\nurl = "{receiver.url(path)}"\nsecret = "{SECRET}"\n' for name, path in paths.items()
    ]
    run_urls = f'[run_urls]\norigins = ["{receiver.url("")}"]\nsecret = {{ env = "RUN_WEBHOOK_SECRET" }}\n'
    (tmp_path / "webhooks.toml").write_text("".join([*endpoints, run_urls]))
    return {"STAGEBUS_WEBHOOKS": str(tmp_path / "webhooks.toml"), "RUN_WEBHOOK_SECRET": SECRET}


async def told(messages: Sequence[Message], run_id: str, kind: str = "run.ended") -> bool:
    return any(message.run_id == run_id and message.payload["type"] == kind for message in messages)


async def ended(system: System, body: dict[str, Any]) -> str:
    run_id = await post_run(system.url, body)

    async def has_ended() -> bool:
        return bool((await get_run(system.url, run_id))["finished_at"])

    await until(has_ended)
    return run_id


async def pass_time(system: System, endpoint: str) -> None:
    """Moves the end of an endpoint's leases and backoffs to the past."""
    for delivery_id in await system.redis.zrange(keys.webhook_due(endpoint), 0, -1):
        await system.redis.zadd(keys.webhook_due(endpoint), {delivery_id: 1})
        await system.redis.zrem(keys.webhook_trying(endpoint), delivery_id)
    await system.redis.rpush(keys.outbox_bell(), "1")  # type: ignore[misc]


async def open_endpoints(system: System) -> set[str]:
    return set(await count_open(system.redis))


async def test_event_is_told_whatever_process_dies(tmp_path: Path) -> None:
    async with receiving() as receiver:
        env = write_file(tmp_path, receiver, works="/ok", hangs="/hang")
        async with System(tmp_path, workers=0, env=env) as system:
            # A worker that tells nobody ends a run and dies: the outbox has it, since the gateway has the file.
            silent = system.add_worker({"STAGEBUS_WEBHOOKS": ""})
            run_id = await ended(system, QUICK)
            await silent.kill()
            assert receiver.messages == []
            assert await system.redis.xlen(keys.outbox()) == 1

            # Another one tells it, and dies within a try: the message comes again under the same id.
            system.add_worker()
            await until(lambda: told(receiver.at("/ok"), run_id))
            await until_equal(lambda: asyncio.sleep(0, receiver.open["/hang"]), 1)
            await system.workers[-1].kill()
            system.add_worker()
            await pass_time(system, "hangs")
            await until_equal(lambda: asyncio.sleep(0, len(receiver.at("/hang"))), 2)
            assert len({message.webhook_id for message in receiver.at("/hang")}) == 1
            assert len(receiver.at("/ok")) == 1

            # Redis restarts while a run's own webhook is refused: it is told as soon as it accepts.
            receiver.answers["/mine"] = [answer("503 Busy")]
            run_id = await ended(system, {**QUICK, "webhook_url": receiver.url("/mine")})
            await until_equal(lambda: asyncio.sleep(0, len(receiver.at("/mine"))), 1)
            system.valkey.stop()
            system.valkey.start()
            await system.redis.connection_pool.disconnect()
            await pass_time(system, f"run-url {receiver.url('')}")
            await until_equal(lambda: asyncio.sleep(0, len(receiver.at("/mine"))), 2)
            assert len({message.webhook_id for message in receiver.at("/mine")}) == 1
            await until(lambda: told(receiver.at("/ok"), run_id))
            await until_equal(lambda: open_endpoints(system), {"hangs"})
            state = (await get_run(system.url, run_id))["status"]
            assert receiver.at("/mine")[0].payload["data"]["status"] == state == "succeeded"


async def test_runs_tell_when_they_wait_and_end_and_the_feed_has_all(tmp_path: Path) -> None:
    """The feed is read by the Python client, over a gateway's restart."""
    async with receiving() as receiver:
        env = write_file(tmp_path, receiver, works="/ok") | {"STAGEBUS_APPROVALS": "get_weather"}
        async with System(tmp_path, env=env) as system, AsyncStagebus(system.url) as bus:
            events = bus.runs.events("0")
            run = await bus.runs.create(user_prompt=WEATHER["user_prompt"], tools=["get_weather"])
            await until(lambda: told(receiver.at("/ok"), run.id, "run.waiting"))
            await system.restart_gateway(is_killed=True)
            seen = [await anext(events) for _ in range(3)]
            (pending,) = (await run.get())["pending_approvals"]
            await run.deny(pending["call_id"])
            await until(lambda: told(receiver.at("/ok"), run.id))
            seen += [await anext(events) for _ in range(2)]

            assert [event.event for event in seen] == [
                "run_created", "run_started", "run_waiting", "run_started", "run_ended",
            ]  # fmt: skip
            assert {event.data["run_id"] for event in seen} == {run.id}
            assert [message.payload["type"] for message in receiver.at("/ok")] == ["run.waiting", "run.ended"]

            async with httpx.AsyncClient(base_url=system.url) as http:
                listed = (await http.get("/webhooks/deliveries", params={"state": "delivered"})).json()
                stats = (await http.get("/stats")).json()["webhooks"]
                refused = await http.post("/runs", json={**QUICK, "webhook_url": "https://elsewhere.example/"})
            assert [one["type"] for one in listed["deliveries"]] == ["run.ended", "run.waiting"]
            assert (stats["open"], stats["files_differ"]) == ({}, False)
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "webhook_url")
            await events.aclose()
