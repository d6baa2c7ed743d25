"""Threads whose turns a test begins and ends itself, for tests of the reading side."""

from typing import Any

import orjson
from redis.asyncio import Redis

from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.storage import keys
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand

TTL_S = 600


class TurnsByHand:
    """A thread and its runs. Its keys are written as the scripts write them."""

    def __init__(self, redis: Redis, identity: ThreadIdentity) -> None:
        self.redis = redis
        self.identity = identity
        self.key = keys.thread(identity)
        self.runs: list[RunByHand] = []
        self.is_lossy = False  # messages of the channel reach no subscriber

    async def create(self, life_id: str = "1") -> None:
        """Creates the thread."""
        record = {"tenant": self.identity.tenant, "user": self.identity.user, "thread_id": self.identity.thread_id}
        times = {"created_at": 1, "updated_at": 1, "bytes": 0, "count": 0, "next_seq": 0}
        await self._write(self.key, {**record, **times, "gen": life_id, "active": "", "head": ""})

    async def begin(self, text: str = "Hello", parent: str = "") -> RunByHand:
        """Begins a turn."""
        run = await runs_by_hand.start(self.redis)
        self.runs.append(run)
        await self.activate(run.run_id, text, parent)
        return run

    async def activate(self, run_id: str, text: str = "Hello", parent: str = "") -> None:
        """Makes a run the active one."""
        seq = await self.redis.hincrby(self.key, "next_seq", 1)
        await self.redis.lrem(keys.thread_line(self.key), 0, run_id)
        await self._write(keys.thread_turns(self.key), {f"p:{run_id}": parent, f"n:{run_id}": seq, f"t:{run_id}": 1})
        await self._write(keys.thread_in(self.key), {run_id: orjson.dumps([{"role": "user", "content": text}])})
        await self._write(self.key, {"active": run_id, "head": run_id})
        await self.redis.zadd(keys.thread_order(self.key), {run_id: seq})
        await self.redis.expire(keys.thread_order(self.key), TTL_S)
        await self.announce(f"active {run_id}")

    async def end(self, text: str = "Hi") -> str:
        """Ends the active run and its turn; returns the id of the terminal event."""
        run = self.runs[-1]
        await run.say(text)
        end_id = str(await run.end())
        await self.close(run.run_id, end_id, text)
        await runs_by_hand.stop(run)
        return f"{run.run_id}.{end_id}"

    async def close(self, run_id: str, end_id: str = "", text: str = "Hi", status: str = "succeeded") -> None:
        """Ends a turn."""
        await self._write(keys.thread_turns(self.key), {f"s:{run_id}": status, f"e:{run_id}": end_id})
        await self._write(keys.thread_out(self.key), {run_id: orjson.dumps([{"role": "assistant", "content": text}])})
        await self.redis.hset(self.key, "active", "")  # type: ignore[misc]
        await self.announce("idle")

    async def wait(self, run_id: str, how: str = "enqueue") -> None:
        """Lets a run wait for its turn."""
        await self._write(keys.thread_turns(self.key), {f"w:{run_id}": how})
        await self.redis.rpush(keys.thread_line(self.key), run_id)  # type: ignore[misc]
        await self.redis.expire(keys.thread_line(self.key), TTL_S)
        await self.announce(f"waits {run_id}")

    async def forget(self, run_id: str) -> None:
        """Removes a run, and its messages from the thread."""
        await self.expire(run_id)
        await self._write(keys.thread_turns(self.key), {f"d:{run_id}": 1})
        await self.redis.hdel(keys.thread_in(self.key), run_id)  # type: ignore[misc]
        await self.redis.hdel(keys.thread_out(self.key), run_id)  # type: ignore[misc]
        await self.announce(f"gone {run_id}")

    async def expire(self, run_id: str) -> None:
        """Removes a run, whose messages the thread keeps."""
        await self.redis.delete(*keys.all_of_run(run_id))

    async def delete(self) -> None:
        """Removes the thread."""
        names = (keys.thread_turns, keys.thread_in, keys.thread_out, keys.thread_line, keys.thread_order)
        await self.redis.delete(self.key, *(name(self.key) for name in names))
        await self.announce("deleted")

    async def announce(self, change: str) -> None:
        """Publishes a change, unless messages are to be lost."""
        if not self.is_lossy:
            await self.redis.publish(keys.thread_live(self.key), change)

    async def _write(self, key: str, fields: dict[str, Any]) -> None:
        await self.redis.hset(key, mapping=fields)  # type: ignore[misc]
        await self.redis.expire(key, TTL_S)
