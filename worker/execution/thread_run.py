"""The part of an attempt that belongs to the run's thread: its history, the messages that joined it, and its result."""

import asyncio
from functools import partial
from typing import Any, Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import threads
from stagebus.shared.domain.events import HistoryComposed, MessageAdded
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.domain.runs import RUN_STAGE, RunRecord
from stagebus.shared.errors import RunFailed, TailLost
from stagebus.shared.log import log_reader
from stagebus.shared.log.transcript import TURN_MAX_BYTES
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.storage.thread_scripts import SteeringRun
from stagebus.shared.store import thread_steering, thread_store
from stagebus.shared.store.run_transcript import read_turn
from stagebus.worker.execution.attempt import Attempt
from stagebus.worker.execution.history_composer import HistoryLimits, called_ids, compose_history

Message = dict[str, Any]

# More than a thread holds, so that its system text is read wherever it is. `compose_history` holds to the run's limits.
PATH_MAX_BYTES: Final = 2 * (threads.THREAD_MAX_BYTES + TURN_MAX_BYTES)


class ThreadRun:
    """A run of a thread in one attempt.

    Attributes:
        added: the messages that joined the run, by the stage before which the model gets them.
        call_ids: the ids of the calls in the history; the run's own calls get others.
    """

    def __init__(self, redis: Redis, settings: Settings, run: RunRecord, attempt: Attempt) -> None:
        self._redis = redis
        self._settings = settings
        self._run = run
        self._attempt = attempt
        self.added: dict[str, list[Message]] = {}
        self.call_ids: set[str] = set()

    async def compose(self, request: RunRequest, limits: HistoryLimits) -> RunRequest:
        """Returns the request with the history and the run's own messages.

        Raises:
            HistoryTooLong: they do not fit.
            RunFailed: the run's own messages are gone.
        """
        path = await thread_store.path_to(self._redis, self._run.thread_key, self._run.run_id, PATH_MAX_BYTES)
        if not path.messages_in:
            raise RunFailed("the run's messages are no longer stored")
        is_told = await self._read_journal()
        parent = path.turns[-1].run_id if path.turns else None
        history = compose_history(path, limits, parent=parent, truncate=request.truncate)
        if not is_told:
            self._attempt.producer.put(history.event)
        self.call_ids = called_ids(history.messages)
        return request.model_copy(update={"messages": history.messages})

    async def take_waiting(self, stage_id: str) -> None:
        """Lets the messages of runs that were sent to steer this one join it, before a model stage that has not begun.

        One read tells whether there are any. No message announces them, so none can be missed, and only runs of threads
        pay for it, between two requests to a model.
        """
        for joining in await thread_steering.read_steering(self._redis, self._run):
            try:
                await self._join(joining, stage_id)
            except asyncio.CancelledError:
                # Only the log knows whether the message has joined. The next claim reads it.
                self._attempt.on_failure(TailLost(self._run.run_id, str(self._attempt.producer.last_id)))
                raise

    async def _join(self, joining: SteeringRun, stage_id: str) -> None:
        producer, name = self._attempt.producer, f"run {self._run.run_id}: a message that joins it"
        while True:
            await producer.flush()
            join = partial(
                thread_steering.join_run, self._redis, self._settings, self._run, joining,
                attempt=self._attempt.number, last_id=producer.last_id, before_stage=stage_id,
            )  # fmt: skip
            joined = await retry_while_redis_is_down(join, name)
            if joined is None:  # it was cancelled, or this run was: then it waits for its turn
                return
            appended, event = joined
            if not appended.is_behind:
                break
            if appended.last_id >= producer.last_id:
                raise TailLost(self._run.run_id, str(appended.last_id))
            producer.check_log_end(appended.last_id)  # the log lost its tail, which is sent again
        producer.continue_after(appended.last_id)
        self._add(event)
        if appended.cancel:
            self._attempt.on_cancel()

    async def _read_journal(self) -> bool:
        """Reads the messages that joined the run in earlier attempts; returns whether one of these told of the history."""
        if self._attempt.is_first:
            return False
        journal = await log_reader.read_stage(self._redis, self._run.run_id, RUN_STAGE)
        for stored in journal:
            if stored.event == MessageAdded.event.encode():
                self._add(MessageAdded.model_validate_json(stored.data))
        return any(stored.event == HistoryComposed.event.encode() for stored in journal)

    def _add(self, event: MessageAdded) -> None:
        self.added.setdefault(event.before, []).extend(event.messages)


async def read_out(redis: Redis, attempt: Attempt) -> bytes:
    """Returns the result of the run of an attempt, as its thread holds it, once all of its events are in the log.

    Raises:
        Fenced, RunEnded, TailLost: nothing more may be written.
    """
    producer, name = attempt.producer, f"run {attempt.run_id}: its messages"
    while True:
        await producer.flush()
        read = partial(read_turn, redis, attempt.run_id, producer.stage_ids)
        turn = await retry_while_redis_is_down(read, name)
        if turn.last_id is None or turn.last_id >= producer.last_id:
            return turn.encode()
        producer.check_log_end(turn.last_id)  # the log lost its tail, which is sent again
