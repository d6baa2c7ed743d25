"""Waits until a run has ended or waits for a person, and reads the run for the answer."""

import asyncio
from typing import NamedTuple

from starlette.requests import Request

from stagebus.gateway.api.held_request import hold
from stagebus.gateway.api.schemas.answers import RunView
from stagebus.gateway.api.urls import urls_of
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.views import PauseView
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import approvals, run_result, run_store, thread_news
from stagebus.shared.store.approvals import Pending


class ReadRun(NamedTuple):
    """A run's record and its pending requests to the outside, read one after the other."""

    record: RunRecord
    pending: list[Pending]

    @property
    def is_at_pause(self) -> bool:
        """Returns whether the run has ended or waits for somebody outside, so that a client need not wait longer."""
        return self.record.is_terminal or bool(self.pending)


async def read_run(request: Request, run_id: str) -> ReadRun:
    """Reads a run that the caller may see.

    Raises:
        RunNotFound: the caller has no such run.
    """
    redis = gateway_of(request).redis
    with storage_errors():
        record = await run_store.get_run(redis, run_id, principal_of(request).owner)
        return ReadRun(record, await approvals.read_pending(redis, record))


async def wait_for_pause(request: Request, run: ReadRun, wait_s: float) -> ReadRun:
    """Returns the run once it has ended or waits for a person, or as it is after `wait_s`.

    Raises:
        RunNotFound: the run is gone.
        ClientDisconnect, TooManyStreams, Draining, StorageUnavailable: see `hold`.
    """
    run_id, owner, loop = run.record.run_id, principal_of(request).owner, asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    # A request to a person may be decided by the time the run is read again; then the run goes on.
    while not run.is_at_pause and (left_s := deadline - loop.time()) > 0:
        stream = gateway_of(request).hub.new_stream(
            run_id, run.record.last_id, PauseView(), owner=owner, is_strict=True
        )
        try:
            await hold(request, stream, left_s)
        except StorageUnavailable:
            await read_run(request, run_id)  # the stream is torn also if the run is gone
            raise
        run = await read_run(request, run_id)
    return run


async def view_of(request: Request, run: ReadRun) -> RunView:
    """Reads what else the answer has, and returns the answer."""
    redis, record = gateway_of(request).redis, run.record
    with storage_errors():
        stages = await run_store.read_stages(redis, record.run_id)
        result = await run_result.read_result(redis, record, stages)
        place = await thread_news.read_place(redis, record.thread_key, record.run_id)
    return RunView.of_stages(record, urls_of(request), stages, result, run.pending, place)
