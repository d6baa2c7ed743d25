"""Runs whose events a test appends itself, for tests of the reading side."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import Done, Event, StageStarted, ToolCompletionChunk
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.errors import RunNotFound
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.run_scripts import TerminalState
from stagebus.shared.storage.thread_keys import ThreadEnd
from stagebus.shared.store import run_store, thread_store
from stagebus.worker.execution.producer import Producer

TTL_S = 600


def chunk(text: str, stage_id: str = "extraction") -> ToolCompletionChunk:
    """Builds a model chunk with the text `text`."""
    return ToolCompletionChunk(stage_id=stage_id, tool_results={"choices": [{"index": 0, "delta": {"content": text}}]})


class LossyConnection:
    """The connection of a producer. While `is_lossy`, it publishes to a channel that has no subscribers."""

    def __init__(self, connection: ScriptConnection, run_id: str) -> None:
        self.is_lossy = False
        self._connection = connection
        self._channel = keys.live(run_id)

    def execute_command(self, *args: Any) -> Awaitable[Any]:
        """Sends the command, with another channel if messages are to be lost."""
        if self.is_lossy:
            args = tuple(f"{arg}:nobody" if arg == self._channel else arg for arg in args)
        return self._connection.execute_command(*args)


class RunByHand:
    """A run and its producer. Each method returns after its events are in the log."""

    def __init__(self, redis: Redis, run_id: str, producer: Producer, connection: LossyConnection) -> None:
        self.redis = redis
        self.run_id = run_id
        self.producer = producer
        self._connection = connection

    @contextmanager
    def messages_lost(self) -> Iterator[None]:
        """Within this context, events reach the log, but their pub/sub messages reach no subscriber."""
        self._connection.is_lossy = True
        yield
        self._connection.is_lossy = False

    async def put(self, *events: Event) -> list[EventId]:
        """Appends events and returns their ids."""
        event_ids = [self.producer.put(event) for event in events]
        await self.producer.flush()
        return event_ids

    async def say(self, *texts: str, stage_id: str = "extraction") -> list[EventId]:
        """Appends one model chunk for each text and returns their ids."""
        return await self.put(*(chunk(text, stage_id) for text in texts))

    async def begin(self, stage_id: str) -> list[EventId]:
        """Appends the `stage_started` event of a stage."""
        return await self.put(StageStarted(stage_id=stage_id, attempt=1))

    async def end(self, event: Event | None = None) -> EventId:
        """Appends `done`, or the given terminal event."""
        state = TerminalState(RunStatus.SUCCEEDED, retention_s=TTL_S, thread=await self._thread_end())
        event_id = self.producer.put(event or Done(), state)
        await self.producer.flush()
        return event_id

    async def _thread_end(self) -> ThreadEnd | None:
        with suppress(RunNotFound):
            return thread_store.end_of(await run_store.get_run(self.redis, self.run_id), Settings())
        return None


async def start(redis: Redis, connection: ScriptConnection | None = None) -> RunByHand:
    """Creates a run and claims it; call `stop` at the end.

    Args:
        connection: carries the producer's appends, in place of `redis`.
    """
    run_id = ids.new_run_id()
    await run_scripts.create(
        redis, run_id, tenant=DEFAULT_TENANT, model="m", request=b"{}", event="run_queued",
        data=b'{"stage_id":"run","run_id":"x","model":"m"}', life_s=TTL_S,
    )  # fmt: skip
    return await claim_by_hand(redis, run_id, connection)


async def claim_by_hand(redis: Redis, run_id: str, connection: ScriptConnection | None = None) -> RunByHand:
    """Claims a run that exists; call `stop` at the end."""
    lossy = LossyConnection(connection or redis, run_id)
    return RunByHand(redis, run_id, await claim(redis, run_id, connection=lossy), lossy)


async def queued(redis: Redis, settings: Settings, request: dict[str, Any]) -> str:
    """Creates a run, acquires its lease with the token "token" and returns its id."""
    run_id = await run_store.create_run(redis, settings, tenant="t", model="m", request=request)
    assert await queue_scripts.acquire(redis, run_id, "token", settings.lease_s)
    return run_id


async def claim(
    redis: Redis, run_id: str, worker: str = "w", *, connection: ScriptConnection | None = None
) -> Producer:
    """Claims the run and returns the started producer of the new attempt."""
    claimed = await run_scripts.claim(redis, run_id, worker)
    assert claimed is not None, f"run {run_id} cannot be claimed"
    producer = Producer(
        connection or redis, run_id, claimed.attempt, claimed.last_id,
        stage_ids=["run"], pending_max_bytes=1 << 20,
    )  # fmt: skip
    return await producer.__aenter__()


async def stop(run: RunByHand) -> None:
    """Stops the run's producer."""
    await run.producer.__aexit__(None, None, None)
