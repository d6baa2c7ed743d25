"""A conversation in a system whose processes die: each turn stands in it once, with all that its log says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.domain.threads import OnActive, Thread, ThreadIdentity
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.log.transcript import public_messages, turn_messages
from stagebus.shared.storage import keys
from stagebus.shared.store import thread_store
from tests.support.fault_tools import TOOLS
from tests.support.proxy import Proxy
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import Process, System
from tests.support.waiting import until, until_equal

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

THREAD = "faults"
SLOW = "demo:delay_ms=10,tokens=30"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """Two gateways and two workers."""
    folder = tmp_path_factory.mktemp("threads")
    env = {"STAGEBUS_TOOLS": TOOLS, "FAULT_TOOLS_LOG": str(folder / "tools.log")}
    async with System(folder, gateways=2, workers=2, env=env) as system:
        yield system


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"user_prompt": text, "model": SLOW, "thread_id": THREAD, **fields}


async def send(system: System, text: str, **fields: Any) -> str:
    """Posts a message to the thread and returns its run."""
    return await post_run(system.url, body(text, **fields))


def has(event: str, stage_id: str, count: int = 1) -> Callable[[StrictClient], bool]:
    return lambda c: sum(e.event == event and e.data["stage_id"] == stage_id for e in c.events) >= count


async def kill(*processes: Process) -> None:
    """Kills workers and starts them again; the system goes on meanwhile."""
    for process in processes:
        await process.kill()
    for process in processes:
        process.start()


def transcript_of(client: StrictClient) -> list[dict[str, Any]]:
    """Returns what the run's log comes to, by what a client has received of it."""
    return public_messages(
        turn_messages(
            StoredEvent(e.id.encode(), e.data["stage_id"], e.event.encode(), orjson.dumps(e.data))
            for e in client.events
        )
    )


async def read_thread(system: System, thread_id: str = THREAD) -> Thread:
    identity = ThreadIdentity(DEFAULT_TENANT, "", thread_id)
    return await thread_store.read_thread(system.redis, identity, with_messages=True)


async def test_each_turn_is_whole_and_stands_once_whatever_dies(system: System) -> None:
    """Workers die within turns and between two of them, and so do a gateway and Redis."""
    clients: list[StrictClient] = []

    async def turn(run_id: str, condition: Callable[[StrictClient], bool], fault: Callable[[str], Any]) -> None:
        client = StrictClient(system.urls, run_id)
        following = asyncio.create_task(client.follow())
        await client.until(condition)
        await fault(run_id)
        await following
        assert client.names()[-1] == "done"
        clients.append(client)

    async def kill_holder(run_id: str) -> None:
        await kill(await system.holder_of(run_id))

    async def kill_gateway_and_restart_redis(_: str) -> None:
        await system.restart_gateway(1, is_killed=True)
        await asyncio.to_thread(system.valkey.stop)
        await asyncio.to_thread(system.valkey.start)

    async def kill_all(_: str) -> None:
        await kill(*system.workers)

    joined: list[str] = []

    async def steer_and_kill(run_id: str) -> None:
        joined.append(await send(system, "and slowly, please", on_active="steer"))
        await kill_holder(run_id)

    await turn(await send(system, "hello"), has("tool_completion_chunk", "extraction", 3), kill_holder)
    slow = 'call slow {"n": 1, "seconds": 0.8} and quick {"n": 2}'
    await turn(await send(system, slow), has("tool_result", "tools"), steer_and_kill)
    quick = 'call quick {"n": 3}'
    await turn(await send(system, quick), has("tool_completion_chunk", "synthesis", 3), kill_gateway_and_restart_redis)
    active = await send(system, "the last but one")
    waiting = await send(system, "the last", on_active="enqueue")
    await turn(active, has("tool_completion_chunk", "extraction", 3), kill_all)
    clients.append(await StrictClient(system.urls, waiting).follow())

    thread = await read_thread(system)
    assert [(t.run_id, t.status) for t in thread.turns] == [(client.run_id, "succeeded") for client in clients]
    assert [t.parent_run_id for t in thread.turns] == ["", *(client.run_id for client in clients[:-1])]
    assert (thread.active_run_id, thread.waiting) == ("", ())
    for stored, client in zip(thread.turns, clients, strict=True):
        assert public_messages(stored.messages_out) == transcript_of(client)
        assert not any(message.get("partial") for message in stored.messages_out)
    assert thread.merged == {joined[0]: clients[1].run_id}
    assert said(thread).count("and slowly, please") == 1
    (composed,) = [e.data for e in clients[-1].events if e.event == "history_composed"]
    assert (composed["turns"], composed["cut_turns"]) == (len(clients) - 1, 0)
    assert composed["messages"] == sum(len(t.messages_in) + len(t.messages_out) for t in thread.turns[:-1])


def said(thread: Thread) -> list[str]:
    """Returns what people said, turn by turn."""
    messages = [message for turn in thread.turns for message in (*turn.messages_in, *turn.messages_out)]
    return [message["content"] for message in messages if message["role"] == "user"]


async def test_worker_killed_as_a_message_joins_its_run_says_it_once(system: System) -> None:
    """The next worker begins the stage again, with the message before it."""
    slow = 'call slow {"n": 4, "seconds": 1.5}'  # longer than a POST takes on a busy machine
    run_id = await send(system, slow, thread_id="pickup")
    client = StrictClient(system.urls, run_id)
    following = asyncio.create_task(client.follow())
    await client.until(has("tool_call", "tools"))
    joined = await send(system, "and quick", thread_id="pickup", on_active="steer")
    await client.until(has("message_added", "run"))
    await kill(await system.holder_of(run_id))
    await following
    thread = await read_thread(system, "pickup")

    assert client.names()[-1] == "done"
    assert client.names().count("message_added") == 1
    assert said(thread) == [slow, "and quick"]
    assert thread.merged == {joined: run_id}
    assert [turn.run_id for turn in thread.turns] == [run_id]


async def test_posts_whose_answers_were_lost_are_one_turn_each(system: System) -> None:
    """A gateway dies once it has created the runs. The same POSTs at the other one find them, whatever became of them."""
    requests = {f"lost-{policy}": body("lost", thread_id=f"lost-{policy}", on_active=policy) for policy in OnActive}

    async def post(url: str, thread_id: str) -> str:
        return await post_run(url, requests[thread_id], **{"Idempotency-Key": thread_id})

    for thread_id in list(requests)[1:]:  # the first one begins its thread, and its repetition meets its own run
        await send(system, 'call slow {"n": 5, "seconds": 1}', thread_id=thread_id)
    async with Proxy(httpx.URL(system.urls[1]).port or 0) as proxy:
        proxy.drop_replies = True
        posting = [asyncio.create_task(post(f"http://127.0.0.1:{proxy.port}", thread_id)) for thread_id in requests]
        bound = [keys.idempotency(DEFAULT_TENANT, thread_id) for thread_id in requests]
        await until_equal(lambda: system.redis.exists(*bound), len(bound))
        created = [reservation.decode().split()[0] for reservation in await system.redis.mget(bound)]
        await system.restart_gateway(1, is_killed=True)
    answers = await asyncio.gather(*posting, return_exceptions=True)
    again = [await post(system.url, thread_id) for thread_id in requests]
    ends = [(await StrictClient(system.urls, run_id).follow()).names()[-1] for run_id in created]
    late = [await post(system.url, thread_id) for thread_id in requests]

    assert all(isinstance(answer, httpx.TransportError) for answer in answers)
    assert created == again == late
    assert set(ends) == {"done"}
    for thread_id in requests:
        await until(partial(is_idle, system, thread_id))
        assert said(await read_thread(system, thread_id)).count("lost") == 1


async def is_idle(system: System, thread_id: str) -> bool:
    thread = await read_thread(system, thread_id)
    return not thread.active_run_id and not thread.waiting
