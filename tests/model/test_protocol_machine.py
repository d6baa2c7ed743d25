"""Take, claim, append, renew, release, cancel, end: many interleavings of two workers against the real scripts.

Replies are lost, leases run out, Redis is put back to an older copy. The check is a
small model: which content each id ever had, and who wrote last.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from shared import ids, keys, live, log, scripts
from shared import redis as redis_connections
from shared.cursor import START, EventId
from shared.errors import Fenced, RunEnded, RunNotFound
from shared.runs import RunStatus
from shared.scripts import LogEntry, RunEnd
from shared.settings import Settings
from tests import snapshots

TTL_S = 600
WORKERS = st.sampled_from([0, 1])
END = RunEnd(RunStatus.SUCCEEDED, retention_s=60)


class Holder:
    """What a worker believes of the run."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.token: str | None = None
        self.attempt: int | None = None
        self.last = START
        self.tokens_made = 0


class LogProtocol(RuleBasedStateMachine):
    url: ClassVar[str]

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.redis: Redis = redis_connections.connect(Settings(redis_url=self.url))
        self.run_id = ids.new_run_id()
        self.workers = [Holder(0), Holder(1)]
        self.content_by_id: dict[EventId, bytes] = {}
        self.older: snapshots.Snapshot | None = None
        self.contents = 0
        self.do(self._create())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def _create(self) -> None:
        await self.redis.flushdb()
        await scripts.create(
            self.redis, self.run_id, tenant="t", model="m", request=b"{}", event="run_queued", data=b"{}", ttl_s=TTL_S
        )
        await scripts.requeue(self.redis, self.run_id, b"{}", TTL_S)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.do(redis_connections.close(self.redis))
            self.loop.close()

    # --- the queue -----------------------------------------------------------

    def _pick(self, index: int, *, is_claimed: bool = False) -> Holder:
        """One of the workers that believe they hold the run."""
        holders = [w for w in self.workers if w.token is not None and (not is_claimed or w.attempt is not None)]
        return holders[index % len(holders)]

    @rule(index=WORKERS, is_lease_over=st.booleans())
    def take(self, index: int, is_lease_over: bool) -> None:
        worker = self.workers[index]
        if is_lease_over:
            self.lease_runs_out()
        worker.tokens_made += 1
        token = f"{index}-{worker.tokens_made}"
        if self.do(scripts.take(self.redis, self.run_id, token, 60)):
            worker.token = token
            assert self.do(self.redis.get(keys.lease(self.run_id))) == token.encode()

    def lease_runs_out(self) -> None:
        self.do(self.redis.delete(keys.lease(self.run_id)))
        self.do(self.redis.zadd(keys.QUEUE, {self.run_id: 0}, xx=True))

    @precondition(lambda self: self.has_attempt)
    @rule(index=WORKERS)
    def renew(self, index: int) -> None:
        worker = self._pick(index, is_claimed=True)
        renewed = self.do(
            scripts.renew(self.redis, self.run_id, token=worker.token, attempt=worker.attempt, lease_s=60)
        )
        if renewed is None:
            worker.token = None
        else:
            assert self.do(self.redis.get(keys.lease(self.run_id))) == worker.token.encode()

    @precondition(lambda self: self.has_token)
    @rule(index=WORKERS)
    def release(self, index: int) -> None:
        worker = self._pick(index)
        holder = self.do(self.redis.get(keys.lease(self.run_id)))
        released = self.do(
            scripts.release(self.redis, self.run_id, token=worker.token, attempt=worker.attempt, delay_s=0)
        )
        if holder not in (None, worker.token.encode()):
            assert not released, "what another holds is not given back"
            assert self.do(self.redis.get(keys.lease(self.run_id))) == holder
        worker.token = worker.attempt = None

    @precondition(lambda self: self.has_token and self._is_ended())
    @rule(index=WORKERS)
    def finish(self, index: int) -> None:
        worker = self._pick(index)
        assert worker.token is not None
        holder = self.do(self.redis.get(keys.lease(self.run_id)))
        finished = self.do(scripts.finish(self.redis, self.run_id, worker.token))
        assert finished == (holder == worker.token.encode())
        worker.token = worker.attempt = None

    @rule()
    def sweep(self) -> None:
        if not self._is_ended():
            self.do(scripts.requeue(self.redis, self.run_id, b"{}", TTL_S))

    # --- the log -------------------------------------------------------------

    @precondition(lambda self: self.has_token)
    @rule(index=WORKERS)
    def claim(self, index: int) -> None:
        worker = self._pick(index)
        attempts = {event_id.attempt for event_id in self.content_by_id}
        try:
            claim = self.do(scripts.claim(self.redis, self.run_id, f"w{worker.index}"))
        except RunEnded:
            assert self._is_ended()
            return
        assert claim is not None
        assert claim.attempt not in attempts, "an attempt is never used twice"
        worker.attempt, worker.last = claim.attempt, claim.last_id

    @precondition(lambda self: self.has_attempt)
    @rule(index=WORKERS, count=st.integers(1, 4), is_reply_lost=st.booleans(), end=st.integers(0, 5))
    def append(self, index: int, count: int, is_reply_lost: bool, end: int) -> None:
        worker = self._pick(index, is_claimed=True)
        assert worker.attempt is not None
        is_end = end == 0
        entries = []
        for i in range(count):
            event_id = EventId(worker.attempt, worker.last.sequence + i + 1)
            data = self.content_by_id.get(event_id)
            if data is None:
                self.contents += 1
                data = b'{"content":%d}' % self.contents
            entries.append(LogEntry("extraction", "chunk", data))
        if is_end:
            entries[-1] = LogEntry("run", "done", entries[-1].data)
        self._append(worker, entries, END if is_end else None)
        if is_reply_lost and worker.attempt is not None:
            self._append(worker, entries, END if is_end else None)
        if worker.attempt is not None:
            worker.last = EventId(worker.attempt, worker.last.sequence + count)

    def _append(self, worker: Holder, entries: list[LogEntry], end: RunEnd | None) -> None:
        assert worker.attempt is not None
        before = self._log()
        last = EventId(worker.attempt, worker.last.sequence + len(entries))
        try:
            appended = self.do(
                scripts.append(
                    self.redis, self.run_id, attempt=worker.attempt, before=worker.last, entries=entries,
                    message=live.encode(worker.last, last, ["extraction"], [b"x"]), ttl_s=TTL_S, end=end,
                    stage_ids=self.do(log.read_head(self.redis, self.run_id)).stage_ids if end else (),
                )
            )  # fmt: skip
        except (Fenced, RunEnded):
            assert self._log() == before, "a fenced or late writer writes nothing"
            worker.attempt = None
            return
        if appended.is_behind:
            assert self._log() == before
            worker.attempt = None  # claims anew; the producer's own test sends again
        else:
            assert appended.last_id == last
            owner = self.do(self.redis.hget(keys.run(self.run_id), "attempt"))
            assert int(owner) == worker.attempt, "only the newest attempt writes"

    @rule()
    def cancel(self) -> None:
        try:
            self.do(scripts.cancel(self.redis, self.run_id))
        except RunEnded:
            assert self._is_ended()

    # --- Redis ---------------------------------------------------------------

    @rule()
    def copy(self) -> None:
        self.older = self.do(snapshots.take(self.redis))

    @precondition(lambda self: self.older is not None)
    @rule()
    def restore(self) -> None:
        """Attempts are ms since the run was made: make it older, as time does pass between two claims."""
        assert self.older is not None
        self.do(snapshots.restore(self.redis, self.older))
        self.do(self.redis.hincrby(keys.run(self.run_id), "created_at", -1000))
        self.older = None

    @property
    def has_token(self) -> bool:
        return any(worker.token is not None for worker in self.workers)

    @property
    def has_attempt(self) -> bool:
        return any(worker.token is not None and worker.attempt is not None for worker in self.workers)

    # --- what holds ----------------------------------------------------------

    def _log(self) -> list[tuple[EventId, bytes, bytes]]:
        page = self.do(log.read_page(self.redis, self.run_id, START, 10_000))
        return [(event.event_id, event.event, event.data) for event in page.events]

    def _is_ended(self) -> bool:
        return bool(self.do(log.read_head(self.redis, self.run_id)).is_ended)

    @invariant()
    def log_is_whole(self) -> None:
        if not hasattr(self, "redis"):
            return
        try:
            events = self._log()
        except RunNotFound:
            pytest.fail("the run vanished")
        assert [event_id.sequence for event_id, _, _ in events] == list(range(1, len(events) + 1))
        assert sorted(event_id for event_id, _, _ in events) == [event_id for event_id, _, _ in events]
        ends = [position for position, (_, event, _) in enumerate(events) if event == b"done"]
        assert ends in ([], [len(events) - 1]), "one terminal event at most, and nothing after it"
        for event_id, _, data in events:
            assert self.content_by_id.setdefault(event_id, data) == data, "an id never stands for two things"

    @invariant()
    def keys_have_ttls(self) -> None:
        if hasattr(self, "redis"):
            assert self.do(self.redis.ttl(keys.run(self.run_id))) > 0


def test_protocol_holds_in_any_interleaving(redis_url: str) -> None:
    LogProtocol.url = redis_url.removesuffix("/0") + "/7"  # a database of its own
    run_state_machine_as_test(
        LogProtocol,
        settings=settings(
            max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
