"""A conversation of the chaos test that somebody deletes, again and again, while people post to it.

At the end it is deleted once more, and then nothing of it may be left: no key of the thread, and none of its runs.
"""

import asyncio
import re
from dataclasses import dataclass

import httpx

from stagebus.shared.domain.run_id_pattern import PATTERN
from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.storage import keys
from tests.support.strict_client import Violation
from tests.support.thread_ledger import ThreadLedger
from tests.support.thread_storm import PAUSE_MAX_S, REFUSALS, Conversation

# A POST that is repeated may find its run, or its thread, deleted.
REFUSALS_OF_DELETED = REFUSALS | {"thread_deleting", "run_deleted"}


@dataclass
class DeletedConversation(Conversation):
    """One thread with its posters and those who delete it."""

    refusals: frozenset[str] = REFUSALS_OF_DELETED

    async def run(self) -> ThreadLedger:
        """Lets the people talk, deletes the thread meanwhile and at the end, and checks that it is gone."""
        deleting = asyncio.create_task(self._delete_now_and_then())
        try:
            await asyncio.gather(*(self._talk() for _ in range(self.chance.randint(2, 3))))
            deleting.cancel()
            await asyncio.wait([deleting])
            while await self._delete_thread() != httpx.codes.NOT_FOUND:
                pass
            await self._while_redis_is_down(self.check_gone)
        except Violation as exc:
            self.ledger.violations.append(str(exc))
        finally:
            deleting.cancel()
            await asyncio.gather(deleting, return_exceptions=True)
        self.ledger.threads += 1
        self.ledger.deleted |= {post.run_id for post in self.posts}
        return self.ledger

    async def _delete_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(0, PAUSE_MAX_S))
            await self._delete_thread()

    async def _delete_thread(self) -> int:
        response = await self._request("DELETE", f"/threads/{self.thread_id}")
        if response.status_code not in (202, 204, 404):
            raise Violation(f"DELETE of {self.thread_id}: {response.status_code} {response.text}")
        self.ledger.posts[f"deletion {response.status_code}"] += 1
        return response.status_code

    def _note_refusal(self, code: str, detail: str) -> None:
        super()._note_refusal(code, detail)
        if code == "run_deleted":  # its run was accepted, although nobody got the answer
            self.ledger.deleted |= set(re.findall(PATTERN, detail))

    async def check_gone(self) -> None:
        """Notes what is left of the thread and of its runs."""
        key = keys.thread(ThreadIdentity(DEFAULT_TENANT, "", self.thread_id))
        left = [name async for name in self.redis.scan_iter(f"{key}*")]
        records = [keys.run(post.run_id) for post in self.posts]
        left += [record for record in records if await self.redis.hexists(record, "created_at")]  # type: ignore[misc]
        if left:
            self.ledger.left.append(f"{self.thread_id}: {left}")
