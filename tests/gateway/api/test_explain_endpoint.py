"""`GET /runs/{id}/explain` in situations that are made with the real scripts on a real server."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import (
    ApprovalDecided,
    ApprovalRequired,
    CallDeferred,
    Event,
    RetryScheduled,
    RunStarted,
    StageCompleted,
    StageStarted,
    ToolCall,
)
from stagebus.shared.domain.tenants import DEFAULT_TENANT, Scope
from stagebus.shared.domain.threads import OnActive, ThreadIdentity, ThreadRequest
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.store import parking, run_store
from stagebus.shared.store.heartbeats import Heartbeat
from stagebus.shared.store.parking import Seen
from tests.gateway.conftest import ClientOf
from tests.support.runs_by_hand import RunByHand, claim_by_hand, stop

REQUEST = {"timeout_s": 60}
WORKER, OTHER = "host:1:aa", "host:2:bb"


class Made:
    """Makes the situations of one test."""

    def __init__(self, redis: Redis, settings: Settings, api: httpx.AsyncClient) -> None:
        self.redis = redis
        self._settings = settings
        self._api = api
        self._runs: list[RunByHand] = []

    async def create(self) -> str:
        return await run_store.create_run(self.redis, self._settings, tenant=DEFAULT_TENANT, model="m", request=REQUEST)

    async def create_in_thread(self) -> str:
        thread = ThreadRequest(ThreadIdentity(DEFAULT_TENANT, "", "chat"), [], on_active=OnActive.ENQUEUE)
        return await run_store.create_run(
            self.redis, self._settings, tenant=DEFAULT_TENANT, model="m", request=REQUEST, thread=thread
        )

    async def hold(self, run_id: str, *events: Event, worker: str = WORKER) -> RunByHand:
        """Lets a worker acquire and claim the run, and append events."""
        assert await queue_scripts.acquire(self.redis, run_id, worker, 60)
        run = await claim_by_hand(self.redis, run_id)
        self._runs.append(run)
        await self.redis.hset(keys.run(run_id), "worker", worker)
        started = RunStarted(attempt=await self.attempt_of(run_id), worker=worker)
        now_ms = await self.now_ms()
        await run.put(*(event.stamped(now_ms) for event in (started, *events)))
        return run

    async def attempt_of(self, run_id: str) -> int:
        return (await run_store.get_run(self.redis, run_id)).attempt

    async def lose_lease(self, run_id: str) -> None:
        """Lets the lease of the run's worker end."""
        await self.redis.delete(keys.lease(run_id))
        await self.redis.zadd(keys.QUEUE, {run_id: await self.now_ms() - 1})

    async def beat(self, *run_ids: str, concurrency: int = 4, name: str = WORKER, **of_run: Any) -> None:
        """Sends a worker's heartbeat."""
        runs = [{"id": run_id, "attempt": 1, **of_run} for run_id in run_ids]
        state = orjson.dumps({"concurrency": concurrency, "runs": runs})
        await Heartbeat(self.redis, keys.WORKERS, name, dict).send(state)

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds * 1000 + micros // 1000)

    async def explain(self, run_id: str) -> dict[str, Any]:
        response = await self._api.get(f"/runs/{run_id}/explain")
        assert response.status_code == 200, response.text
        explained: dict[str, Any] = response.json()
        return explained

    async def aclose(self) -> None:
        for run in self._runs:
            await stop(run)


@pytest.fixture
async def made(redis: Redis, settings: Settings, api: httpx.AsyncClient) -> AsyncIterator[Made]:
    await redis.set(keys.SWEEP, "none", px=60_000)  # the gateway must not repair what a test breaks
    situations = Made(redis, settings, api)
    yield situations
    await situations.aclose()


async def _in_line(made: Made) -> tuple[str, str]:
    await made.beat()
    await made.create()
    return await made.create(), "1 run before it; free: 4 slots of 1 worker"


async def _no_worker(made: Made) -> tuple[str, str]:
    return await made.create(), "no worker is alive"


async def _all_slots_held(made: Made) -> tuple[str, str]:
    held = await made.create()
    await made.hold(held)
    await made.beat(held, concurrency=1)
    return await made.create(), "all 1 slot of 1 worker are held"


async def _asks_the_model(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    run = await made.hold(run_id, StageStarted(stage_id="extraction", attempt=1))
    await run.say("Hello", " world")
    return run_id, f"worker {WORKER} asks the model (extraction, begun N s ago); the log has 5 events"


async def _provider_slot(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    await made.hold(run_id, StageStarted(stage_id="extraction", attempt=1))
    await made.beat(run_id, waits_for_provider="openai")
    return run_id, "waits for provider openai"


async def _retry(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    failed = RetryScheduled(retry_of="extraction", retry=2, backoff_s=30, reason="the provider is overloaded")
    await made.hold(run_id, StageStarted(stage_id="extraction", attempt=1), failed)
    return run_id, "before retry 2 of extraction: the provider is overloaded"


async def _runs_a_tool(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    begun = [
        StageStarted(stage_id="extraction", attempt=1),
        StageCompleted(stage_id="extraction", result={}),
        StageStarted(stage_id="tools", attempt=1),
        ToolCall(stage_id="tools", call_id="c1", name="get_weather", arguments="{}"),
    ]
    await made.hold(run_id, *begun)
    return run_id, "runs tools (tools): get_weather for N s"


async def _parked(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    due_ms = await made.now_ms() + 3_600_000
    asked = ApprovalRequired(stage_id="tools", call_id="c1", name="pay", arguments="{}", expires_at=due_ms)
    await made.hold(run_id, StageStarted(stage_id="tools", attempt=1), asked)
    attempt = await made.attempt_of(run_id)
    assert await parking.park(made.redis, run_id, token=WORKER, attempt=attempt, due_ms=due_ms, seen=Seen())
    return run_id, "parked until a person decides: the approval of pay (call c1)"


async def _client_tool(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    due_ms = await made.now_ms() + 3_600_000
    call = {"stage_id": "tools", "call_id": "c1", "name": "open_file", "arguments": "{}"}
    deferred = CallDeferred(**call, kind="client", expires_at=due_ms, ref="1-2")
    await made.hold(run_id, StageStarted(stage_id="tools", attempt=1), ToolCall(**call), deferred)
    attempt = await made.attempt_of(run_id)
    assert await parking.park(made.redis, run_id, token=WORKER, attempt=attempt, due_ms=due_ms, seen=Seen())
    return run_id, "parked until a client gives the result of open_file (call c1)"


async def _in_a_line(made: Made) -> tuple[str, str]:
    first, *_, last = [await made.create_in_thread() for _ in range(3)]
    return last, f"waits in its thread behind run {first} and 1 other run"


async def _throttled(made: Made) -> tuple[str, str]:
    await made.redis.hset(keys.LIMITS, "default:runs_running", 1)
    await made.hold(await made.create())
    run_id = await made.create()
    assert not await queue_scripts.acquire(made.redis, run_id, "token", 60)
    return run_id, "tenant default has 1 run running, and its limit is 1"


async def _silent_worker(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    await made.hold(run_id)
    await made.redis.pexpire(keys.lease(run_id), 300)
    return run_id, f"worker {WORKER} has not renewed its lease in time"


async def _lost_worker(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    await made.hold(run_id)
    await made.lose_lease(run_id)
    await made.beat(name=OTHER)
    return run_id, f"worker {WORKER} lost its lease"


async def _stranded(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    await made.redis.zrem(keys.QUEUE, run_id)
    return run_id, "no entry in the queue"


async def _cancelling(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    await made.hold(run_id)
    await run_scripts.cancel(made.redis, run_id)
    return run_id, "a cancel is requested"


async def _ended(made: Made) -> tuple[str, str]:
    run_id = await made.create()
    run = await made.hold(run_id)
    await run.end()
    return run_id, "succeeded after N s"


SITUATIONS = {
    "worker": _in_line, "no_worker": _no_worker, "free_slot": _all_slots_held, "model": _asks_the_model,
    "provider": _provider_slot, "retry": _retry, "tool": _runs_a_tool, "person": _parked, "tenant_limit": _throttled, "result": _client_tool, "thread": _in_a_line,
    "lease": _silent_worker, "worker (lease lost)": _lost_worker, "sweep": _stranded, "cancel": _cancelling,
    "nothing": _ended,
}  # fmt: skip


@pytest.mark.parametrize(("waits_for", "make"), SITUATIONS.items(), ids=SITUATIONS)
async def test_explanation_says_what_the_run_waits_for(
    made: Made, waits_for: str, make: Callable[[Made], Awaitable[tuple[str, str]]]
) -> None:
    run_id, says = await make(made)
    explained = await made.explain(run_id)

    assert explained["waits_for"] == waits_for.partition(" ")[0]
    assert says in re.sub(r"\d+\.\d s", "N s", explained["now"])
    assert explained["next"]
    assert explained["story"][0]["text"] == "created for the model m"


async def test_explanation_of_a_parked_run_has_the_command_that_moves_it(made: Made) -> None:
    run_id, _ = await _parked(made)

    assert f"stagebus approve {run_id} c1" in (await made.explain(run_id))["next"]


async def test_story_tells_a_lost_lease_from_a_run_that_was_given_back(made: Made) -> None:
    run_id = await made.create()
    await made.hold(run_id, StageStarted(stage_id="extraction", attempt=1))
    assert await queue_scripts.release(made.redis, run_id, token=WORKER, attempt=await made.attempt_of(run_id))
    await made.hold(run_id, worker=OTHER)
    given_back = [line["text"] for line in (await made.explain(run_id))["story"]]
    lost_id = await made.create()
    await made.hold(lost_id)
    await made.lose_lease(lost_id)
    await made.hold(lost_id, worker=OTHER)
    lost = [line["text"] for line in (await made.explain(lost_id))["story"]]

    assert given_back[1].startswith(f"taken by worker {WORKER} after ")
    assert given_back[-1].startswith(f"taken by worker {OTHER}: the worker before gave it back (attempt ")
    assert lost[-1].startswith(f"taken by worker {OTHER}: the worker before lost its lease (attempt ")


async def test_story_of_many_calls_is_cut_in_the_middle(made: Made) -> None:
    run_id = await made.create()
    calls = [
        event
        for n in range(60)
        for event in (
            ApprovalRequired(stage_id="tools", call_id=f"c{n}", name="pay", arguments="{}", expires_at=1),
            ApprovalDecided(stage_id="tools", call_id=f"c{n}", decision="deny"),
        )
    ]
    await made.hold(run_id, StageStarted(stage_id="tools", attempt=1), *calls)
    texts = [line["text"] for line in (await made.explain(run_id))["story"]]

    assert len(texts) == 80
    assert texts[0] == "created for the model m"
    assert texts[20] == "… 44 more lines …"
    assert texts[-1] == "call c59 is denied"


async def test_explanation_as_text_escapes_what_a_model_wrote(made: Made, api: httpx.AsyncClient) -> None:
    run_id = await made.create()
    call = ToolCall(stage_id="tools", call_id="c", name="x\x1b[2Jnow:  done", arguments="{}")
    await made.hold(run_id, StageStarted(stage_id="tools", attempt=1), call)
    response = await api.get(f"/runs/{run_id}/explain", headers={"Accept": "text/plain"})

    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    first, *_, now, last = response.text.splitlines()
    assert first == f"run {run_id}: running"
    assert now.startswith("now:    worker host:1:aa runs tools (tools): x\\u001b[2Jnow:  done for ")
    assert last.startswith("next:   its work goes on by itself; its time limit ends it in ")


async def test_other_tenants_get_no_explanation(client_of: ClientOf, redis: Redis, settings: Settings) -> None:
    run_id = await run_store.create_run(redis, settings, tenant="a", model="m", request=REQUEST)
    mine, other = await client_of("a", Scope.RUNS_READ), await client_of("b", Scope.RUNS_READ)
    writer = await client_of("a", Scope.RUNS_WRITE)

    assert (await mine.get(f"/runs/{run_id}/explain")).status_code == 200
    assert (await other.get(f"/runs/{run_id}/explain")).status_code == 404
    assert (await writer.get(f"/runs/{run_id}/explain")).status_code == 403
