"""Runs of one thread in a test: created, worked on by a runner, and read back."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.threads import Thread, ThreadIdentity, ThreadRequest, ThreadTurn
from stagebus.shared.log import log_reader
from stagebus.shared.log.transcript import public_messages
from stagebus.shared.storage import queue_scripts
from stagebus.shared.store import run_store, thread_store
from stagebus.worker.execution.outcome import Outcome
from stagebus.worker.execution.runner import Runner

IDENTITY = ThreadIdentity("t", "", "chat-7")
Message = dict[str, Any]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def answer(content: str, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


class ThreadRuns:
    """One thread, whose runs a test creates and works on."""

    def __init__(self, redis: Redis, settings: Settings, runner: Runner) -> None:
        self.redis = redis
        self._settings = settings
        self._runner = runner

    async def post(self, *messages: str | Message, thread: dict[str, Any] | None = None, **request: Any) -> str:
        """Creates a run and returns its id; a text is a message of the user.

        Args:
            thread: further fields of the run's place in the thread.
        """
        own = [user(message) if isinstance(message, str) else message for message in messages]
        asked = {"model": "native", "tools": [], "timeout_s": 60, **request}
        return await run_store.create_run(
            self.redis, self._settings, tenant=IDENTITY.tenant, model="native", request=asked,
            thread=ThreadRequest(IDENTITY, own, **(thread or {})),
        )  # fmt: skip

    async def work(self, run_id: str, token: str = "token") -> Outcome:
        """Acquires the run and works on it until its outcome."""
        assert await queue_scripts.acquire(self.redis, run_id, token, self._settings.lease_s)
        return await asyncio.wait_for(self._runner.run(run_id, token), 10)

    async def say(self, *messages: str | Message, **options: Any) -> str:
        """Creates a run, works on it to its end and returns its id."""
        run_id = await self.post(*messages, **options)
        await self.work(run_id)
        return run_id

    async def read(self) -> Thread:
        """Reads the thread with all messages."""
        return await thread_store.read_thread(self.redis, IDENTITY, with_messages=True)

    async def turn(self, run_id: str) -> ThreadTurn:
        """Reads one turn."""
        return next(turn for turn in (await self.read()).turns if turn.run_id == run_id)

    async def out(self, run_id: str) -> Sequence[Message]:
        """Returns what a run came to, as clients get it."""
        return public_messages((await self.turn(run_id)).messages_out)

    async def events(self, run_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Returns the names and the data of a run's events."""
        page = await log_reader.read_page(self.redis, run_id, START, 1000)
        return [(event.event.decode(), json.loads(event.data)) for event in page.events]

    async def event(self, run_id: str, name: str) -> dict[str, Any]:
        """Returns the data of the only event of this name."""
        (data,) = [data for event, data in await self.events(run_id) if event == name]
        return data
