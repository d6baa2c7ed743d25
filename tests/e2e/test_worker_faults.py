"""Faults of workers: killed, frozen, blocked, drained. Every client checks each event (StrictClient)."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from stagebus.shared.storage import keys
from tests.support import view_readers
from tests.support.fault_tools import TOOLS
from tests.support.proxy import Proxy
from tests.support.strict_client import StrictClient, cancel_run, get_run, post_run
from tests.support.system import Process, System
from tests.support.waiting import until, until_equal

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

Noted = Callable[[], list[str]]


@pytest.fixture(scope="module")
def tools_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "tools.log"
    path.touch()
    return path


@pytest.fixture
def noted(tools_log: Path) -> Noted:
    """Returns a function that lists the tool calls since the test began."""
    before = len(tools_log.read_text().splitlines())
    return lambda: tools_log.read_text().splitlines()[before:]


@pytest.fixture(scope="module")
def env(tools_log: Path) -> dict[str, str]:
    return {"STAGEBUS_TOOLS": TOOLS, "FAULT_TOOLS_LOG": str(tools_log)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> AsyncIterator[System]:
    """A gateway and two workers. Each test leaves them running."""
    async with System(tmp_path_factory.mktemp("system"), workers=2, env=env) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patient(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> AsyncIterator[System]:
    """Two gateways and two workers with long leases: a run that is acquired soon was given back, not expired."""
    lease = {"STAGEBUS_LEASE_S": "8", "STAGEBUS_POLL_S": "2", "STAGEBUS_DRAIN_GRACE_S": "0.5"}
    async with System(tmp_path_factory.mktemp("patient"), gateways=2, workers=2, env={**env, **lease}) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unattended(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> AsyncIterator[System]:
    """A gateway without a worker."""
    async with System(tmp_path_factory.mktemp("unattended"), workers=0, env=env) as system:
        yield system


@asynccontextmanager
async def one_worker(system: System, env: dict[str, str] | None = None) -> AsyncIterator[Process]:
    """Runs one worker within this context."""
    worker = system.add_worker(env)
    await worker.ready("is ready for")
    try:
        yield worker
    finally:
        if worker.is_running:
            await worker.kill()


def call(model: str, *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Builds a request whose model calls exactly these tools."""
    text = " and ".join(f"{name} {orjson.dumps(arguments).decode()}" for name, arguments in calls)
    return {"user_prompt": f"call {text}", "model": model}


def has(event: str, stage_id: str, count: int = 1) -> Callable[[StrictClient], bool]:
    return lambda c: sum(e.event == event and e.data["stage_id"] == stage_id for e in c.events) >= count


MOMENTS = {
    "in extraction": (has("tool_completion_chunk", "extraction", 3), {"extraction"}),
    "between stages": (has("stage_completed", "extraction"), {"tools"}),
    "in a tool": (has("tool_call", "tools", 2), {"tools"}),
    "with one result": (has("tool_result", "tools", 1), {"tools"}),
    "in synthesis": (has("tool_completion_chunk", "synthesis", 5), {"synthesis"}),
}


async def test_run_of_a_killed_worker_continues_on_another(system: System, noted: Noted) -> None:
    """Completed stages and finished calls do not run again, and the text is right, at whatever moment it is killed."""
    body = call("demo:delay_ms=15", ("slow", {"n": 1, "seconds": 1.0}), ("quick", {"n": 2}))
    undisturbed = await StrictClient(system.urls, await post_run(system.url, body)).follow()
    for moment, (condition, restarted) in MOMENTS.items():
        before = len(noted())
        run_id = await post_run(system.url, body)
        client = StrictClient(system.urls, run_id)
        following = asyncio.create_task(client.follow())
        await client.until(condition)
        holder = await system.holder_of(run_id)
        await holder.kill()
        holder.start()
        await following
        await holder.ready("is ready for")

        assert client.names()[-1] == "done", moment
        assert {e.data["stage_id"] for e in client.events if e.event == "stage_restarted"} <= restarted, moment
        completed = [e.data["stage_id"] for e in client.events if e.event == "stage_completed"]
        assert completed == ["extraction", "tools", "synthesis"], moment
        assert client.text("synthesis") == undisturbed.text("synthesis"), moment
        again = noted()[before:]
        if moment in {"with one result", "in synthesis"}:
            assert again.count("quick 2") == 1, "a call with a result must not run again"
        assert (await get_run(system.url, run_id))["tries"] == 1, moment


async def test_no_view_ends_with_text_that_a_killed_worker_left_void(system: System) -> None:
    """One run, watched in six protocols at once; what it said before the kill stands nowhere at the end."""
    body = {"model": "demo:delay_ms=30", "messages": [{"role": "user", "content": "What is the weather in Paris?"}]}
    key = {"Idempotency-Key": "watched-by-all"}
    run_id = await post_run(system.url, body, **key)
    native = StrictClient(system.urls, run_id)
    chat = view_readers.ChatReader(system.urls, run_id, body, key["Idempotency-Key"])
    kinds = (
        view_readers.ResponsesReader,
        view_readers.UiMessageReader,
        view_readers.AguiReader,
        view_readers.DurableReader,
    )
    readers = [chat, *(kind(system.urls, run_id) for kind in kinds)]
    following = asyncio.gather(native.follow(), *(reader.follow() for reader in readers))
    await native.until(has("tool_completion_chunk", "synthesis", 6))
    holder = await system.holder_of(run_id)
    await holder.kill()
    holder.start()
    await following
    await holder.ready("is ready for")

    assert [e.data["stage_id"] for e in native.events if e.event == "stage_restarted"] == ["synthesis"]
    assert native.text("synthesis")
    assert [(reader.end, reader.text) for reader in readers] == [("done", view_readers.expected_text(native))] * 5
    assert chat.restarts == 1, "the chat client had void text and came back"


async def test_frozen_worker_is_fenced_and_works_on_afterwards(system: System) -> None:
    run_id = await post_run(system.url, {"user_prompt": "talk", "model": "demo:delay_ms=20,tokens=80"})
    client = StrictClient(system.urls, run_id)
    following = asyncio.create_task(client.follow())
    await client.until(has("tool_completion_chunk", "extraction", 5))
    zombie = await system.holder_of(run_id)
    zombie.signal(signal.SIGSTOP)
    await client.until(has("stage_restarted", "extraction"))
    zombie.signal(signal.SIGCONT)
    await following

    assert client.names()[-1] == "done"
    (other,) = [worker for worker in system.workers if worker is not zombie]
    await other.terminate()
    second = await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hello"})).follow()
    assert second.names()[-1] == "done", "the worker that was frozen executes it"
    async with httpx.AsyncClient() as http:

        async def open_streams() -> int:
            return int((await http.get(f"{system.demo_url}/demo/stats")).json()["open_streams"])

        await until_equal(open_streams, 0)
    other.start()
    await other.ready("is ready for")


async def test_non_idempotent_tool_is_not_run_twice(system: System, noted: Noted) -> None:
    run_id = await post_run(system.url, call("demo:delay_ms=1", ("pay", {"n": 7, "seconds": 30})))
    client = StrictClient(system.urls, run_id)
    following = asyncio.create_task(client.follow())
    await until(lambda: "pay 7" in noted())
    holder = await system.holder_of(run_id)
    await holder.kill()
    holder.start()
    await following

    assert noted().count("pay 7") == 1
    (result,) = [event for event in client.events if event.event == "tool_result"]
    assert result.data["is_error"]
    assert "outcome of this call is unknown" in result.data["content"]
    assert client.names()[-1] == "done"
    await holder.ready("is ready for")


async def test_run_that_kills_its_workers_fails_after_its_attempts(system: System, noted: Noted) -> None:
    run_id = await post_run(system.url, call("demo:delay_ms=1", ("poison", {})))
    client = StrictClient(system.urls, run_id)
    following = asyncio.create_task(client.follow())
    for deaths in range(1, 4):
        await until_equal(lambda: noted().count("poison"), deaths)
        dead = await until(lambda: [worker for worker in system.workers if not worker.is_running])
        dead[0].start()
    await following

    assert client.events[-1].event == "error"
    assert client.events[-1].data["code"] == "attempts_exhausted"
    run = await get_run(system.url, run_id)
    assert (run["status"], run["error"]["code"]) == ("failed", "attempts_exhausted")
    other = await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hello"})).follow()
    assert other.names()[-1] == "done", "other runs still work"
    for worker in system.workers:
        await worker.ready("is ready for")


BLOCKERS = ("blocking", "busy")


async def test_blocked_worker_keeps_its_lease(system: System, noted: Noted) -> None:
    """For twice the lease, in a thread and in the event loop itself."""
    bodies = [call("demo:delay_ms=1", (name, {"seconds": 3.5})) for name in BLOCKERS]
    clients = [StrictClient(system.urls, await post_run(system.url, body)) for body in bodies]
    await asyncio.gather(*(client.follow() for client in clients))

    for client in clients:
        assert client.names()[-1] == "done"
        assert "stage_restarted" not in client.names()
    assert sorted(noted()) == sorted(BLOCKERS)


async def test_worker_gives_its_runs_back_at_sigterm(patient: System) -> None:
    """A run in a tool is given back immediately, one in its text after the grace; neither waits for the lease."""
    system, (old, new) = patient, patient.workers
    new.signal(signal.SIGSTOP)  # until both runs are on the other worker
    run_ids = [
        await post_run(system.url, {"user_prompt": "talk", "model": "demo:delay_ms=10,tokens=400"}),
        await post_run(system.url, call("demo:delay_ms=1", ("slow", {"n": 1, "seconds": 4}))),
    ]
    clients = [StrictClient(system.urls, run_id) for run_id in run_ids]
    following = asyncio.gather(*(client.follow() for client in clients))
    await clients[0].until(has("tool_completion_chunk", "extraction", 5))
    await clients[1].until(has("tool_call", "tools"))
    new.signal(signal.SIGCONT)
    assert await old.terminate(timeout_s=10) == 0
    old.start()
    asked = asyncio.get_running_loop().time()
    for client in clients:
        await client.until(lambda c: c.names().count("run_started") == 2, timeout_s=10)
    took_s = asyncio.get_running_loop().time() - asked
    await following

    assert took_s < 2, "the lease is 8 s"
    for run_id, client in zip(run_ids, clients, strict=True):
        assert client.names()[-1] == "done"
        assert (await get_run(system.url, run_id))["tries"] == 0, "a drain must not count as a try"
    await old.ready("is ready for")


async def test_sweep_repairs_missing_and_broken_jobs(unattended: System) -> None:
    system = unattended
    run_ids = [await post_run(system.url, {"user_prompt": f"hello {i}", "model": "demo:delay_ms=1"}) for i in range(5)]
    gone, expired, garbage, unknown, sound = run_ids
    await system.redis.zrem(keys.QUEUE, gone)
    await system.redis.delete(keys.job(expired))
    await system.redis.set(keys.job(garbage), b"\x80\x04 no json", ex=600)
    await system.redis.set(keys.job(unknown), b'{"t":null,"f":"nobody","a":[],"k":{},"et":1}', ex=600)
    clients = [StrictClient(system.urls, run_id) for run_id in run_ids]
    async with one_worker(system):
        await asyncio.gather(*(client.follow() for client in clients))
    assert [client.names()[-1] for client in clients] == ["done"] * 5
    # The worker may have been killed between a run's last event and its accounting; then the gateway's sweep does it.
    await until_equal(lambda: system.redis.zcard(keys.ACTIVE), 0)
    assert sound in run_ids


async def test_cancel_in_every_state(unattended: System) -> None:
    """Queued, in a tool, in a tool's thread, while the model is silent, and while a retry is scheduled."""
    system = unattended
    queued = await post_run(system.url, {"user_prompt": "never begun"})
    await cancel_run(system.url, queued)
    assert (await get_run(system.url, queued))["status"] == "cancelled"
    bodies = [
        (call("demo:delay_ms=1", ("slow", {"n": 1, "seconds": 60})), has("tool_call", "tools")),
        (call("demo:delay_ms=1", ("blocking", {"seconds": 3})), has("tool_call", "tools")),
        ({"user_prompt": "x", "model": "demo:first_token_ms=60000"}, has("stage_started", "extraction")),
        ({"user_prompt": "x", "model": "demo:status=503,retry_after=20"}, has("retry_scheduled", "run")),
    ]
    async with one_worker(system):
        for body, condition in bodies:
            run_id = await post_run(system.url, body)
            client = StrictClient(system.urls, run_id)
            following = asyncio.create_task(client.follow())
            await client.until(condition)
            asked = asyncio.get_running_loop().time()
            await cancel_run(system.url, run_id)
            await following
            assert (client.names()[-1], client.events[-1].data["reason"]) == ("cancel", "of a test")
            assert asyncio.get_running_loop().time() - asked < 1.0, body


PROVIDER_TROUBLE = {
    "status=503,fail_times=1": "done",
    "status=429,retry_after=1,fail_times=1": "done",
    "cut_after=3,fail_times=1": "done",
    "garbage_after=3,fail_times=1": "done",
    "no_done=1": "done",
    "status=401": "model_unauthorized",
    "status=400": "model_rejected",
    "status=503": "model_unavailable",
    "stall_after=2": "model_unavailable",
    "endless=1,delay_ms=0": "model_output_too_long",
    "endless=1,delay_ms=50": "run_timeout",
}


async def test_provider_errors_are_retried_if_that_helps(tmp_path: Path, env: dict[str, str]) -> None:
    """A run that exceeds its time and one whose model stalls end with an error that names the limit."""
    limits = {
        "STAGEBUS_MODEL_RETRIES_MAX": "1",
        "STAGEBUS_MODEL_BACKOFF_S": "0.1",
        "STAGEBUS_MODEL_OUTPUT_MAX_BYTES": "20000",
        "STAGEBUS_MODEL_STALL_TIMEOUT_S": "1",
    }
    async with System(tmp_path, env={**env, **limits}) as system:
        healthy = await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hi"})).follow()

        async def run(trouble: str, expected: str) -> StrictClient:
            body = {"user_prompt": "hi", "model": f"demo:delay_ms=1,{trouble}"}
            body |= {"timeout_s": 1} if expected == "run_timeout" else {}
            return await StrictClient(system.urls, await post_run(system.url, body)).follow()

        following = (run(trouble, expected) for trouble, expected in PROVIDER_TROUBLE.items())
        clients = dict(zip(PROVIDER_TROUBLE, await asyncio.gather(*following), strict=True))
    for trouble, expected in PROVIDER_TROUBLE.items():
        last = clients[trouble].events[-1]
        assert (last.event if last.event == "done" else last.data["code"]) == expected, trouble
        if expected == "done":
            assert clients[trouble].text("extraction") == healthy.text("extraction"), trouble
    assert "stage_restarted" in clients["cut_after=3,fail_times=1"].names()
    assert "stage_restarted" not in clients["status=503,fail_times=1"].names(), (
        "before the first token there is nothing to discard"
    )
    assert "silent for 1 s" in clients["stall_after=2"].events[-1].data["error"]
    assert "1 s" in clients["endless=1,delay_ms=50"].events[-1].data["error"]


async def test_worker_killed_between_an_append_and_its_reply(unattended: System) -> None:
    """The append took effect, though the worker never knew; the next attempt continues after it."""
    system = unattended
    async with Proxy(system.redis_port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with one_worker(system, {"STAGEBUS_REDIS_URL": url}):
            run_id = await post_run(system.url, {"user_prompt": "talk", "model": "demo:delay_ms=10,tokens=100"})
            client = StrictClient(system.urls, run_id)
            following = asyncio.create_task(client.follow())
            await client.until(has("tool_completion_chunk", "extraction", 5))
            proxy.drop_replies = True
            await until(lambda: proxy.dropped)
        async with one_worker(system):
            await following

    assert client.names()[-1] == "done"
    assert client.names().count("stage_restarted") == 1


async def test_rolling_restart_loses_no_event_and_pauses_briefly(patient: System) -> None:
    """Restarts every process, one after another, under load; here the grace for streaming text is 0.5 s."""
    system = patient
    body = {"user_prompt": "talk", "model": "demo:delay_ms=20,tokens=100"}
    is_over = asyncio.Event()
    clients: list[StrictClient] = []

    async def keep_running() -> None:
        while not is_over.is_set():
            with suppress(httpx.TransportError):  # the gateway restarts: ask another
                clients.append(StrictClient(system.urls, await post_run(random.choice(system.urls), body)))
                await clients[-1].follow()

    lanes = [asyncio.create_task(keep_running()) for _ in range(10)]
    await until(lambda: len(clients) >= 10)
    for index, worker in enumerate(system.workers):
        assert await worker.terminate() == 0
        worker.start()
        await worker.ready("is ready for")
        await system.restart_gateway(index)
    is_over.set()
    await asyncio.gather(*lanes)

    assert {client.names()[-1] for client in clients} == {"done"}
    assert max(client.longest_pause_s for client in clients) < 3.0
