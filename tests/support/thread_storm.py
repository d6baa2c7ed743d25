"""One conversation of the chaos test: people who post at the same time, delete and cancel, and clients that follow.

posters   each posts messages to one thread over random gateways, repeats a POST until it is answered
clients   follow the thread's stream, with connections cut at random, and run the calls of client tools
at the end  the thread, its stream and the runs' logs are compared with the answers that the posters got
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from redis.asyncio import Redis

from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.domain.threads import Thread, ThreadIdentity
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import REDIS_AWAY
from stagebus.shared.store import thread_store
from tests.support.js_client import JsClients, JsThreadClient
from tests.support.result_givers import DEFINITION, ResultGivers
from tests.support.strict_client import Received, Violation
from tests.support.strict_thread_client import PythonThreadClient, StrictThreadClient
from tests.support.thread_ledger import Post, ThreadLedger, check_thread

T = TypeVar("T")

POLICIES = ("reject", "enqueue", "enqueue", "interrupt", "steer", "steer")
PAUSE_MAX_S = 1.5
LOOK_S = 0.1
# The shares of posts that begin another branch, and after which the run is deleted or cancelled.
BRANCH, DELETE, CANCEL = 0.2, 0.1, 0.1
FETCH = "call fetch"
# What a POST may be refused with, and then it must not have left a run.
REFUSALS = frozenset({"thread_busy", "parent_not_ended", "parent_not_found", "thread_queue_full"})


@dataclass
class TurnOfClient:
    """A run of the thread as one of the clients sees it."""

    urls: list[str]
    run_id: str
    client: StrictThreadClient

    @property
    def events(self) -> list[Received]:
        return next((turn.events for turn in self.client.turns if turn.run_id == self.run_id), [])


@dataclass
class Conversation:
    """One thread with its posters and clients. `patience_s`: for how long a request is repeated, and waited for."""

    urls: list[str]
    redis: Redis
    thread_id: str
    chance: random.Random
    numbers: Callable[[], int]  # unique in the whole storm, since it counts what was paid
    is_over: Callable[[], bool]
    patience_s: float
    client_name: str = "strict"
    js: JsClients | None = None
    refusals: frozenset[str] = REFUSALS
    ledger: ThreadLedger = field(default_factory=ThreadLedger)
    posts: list[Post] = field(default_factory=list)
    givers: list[ResultGivers] = field(default_factory=list)

    async def run(self) -> ThreadLedger:
        """Lets the people talk, waits for the last answer, and checks everything."""
        clients: list[StrictThreadClient] = []
        following: list[asyncio.Task[None]] = []
        watching = answering = asyncio.create_task(self._watch_running())
        try:
            await self._post(on_active="enqueue")  # creates the thread
            clients = [self._client() for _ in range(self.chance.randint(1, 2))]
            following = [asyncio.create_task(client.follow(self._patience)) for client in clients]
            answering = asyncio.create_task(self._answer_calls(clients[0]))
            await asyncio.gather(*(self._talk() for _ in range(self.chance.randint(2, 3))))
            thread = await self._settle()
            await self._until_followed(clients, following, thread)
            await self._check(thread, clients)
        except Violation as exc:
            self.ledger.violations.append(str(exc))
        finally:
            for task in (watching, answering, *following):
                task.cancel()
            await asyncio.gather(watching, answering, *following, return_exceptions=True)
        self.ledger.deleted = {post.run_id for post in self.posts if post.is_deleting}
        self.ledger.kept = {post.run_id for post in self.posts} - self.ledger.deleted
        self._note_results()
        self.ledger.connections += sum(client.connections for client in clients)
        self.ledger.events += sum(len(client.ids) for client in clients)
        return self.ledger

    def _client(self) -> StrictThreadClient:
        if self.client_name == "strict":
            return StrictThreadClient(self.urls, self.thread_id)
        cut_max = self.chance.choice([0, 5_000, 50_000])
        if self.js is not None:
            return JsThreadClient(self.js, self.urls, self.thread_id, cut_max)
        return PythonThreadClient(self.urls, self.thread_id, cut_max)

    def _patience(self) -> int | None:
        return self.chance.choice([None, 1, 10, 50])

    # --- people ---------------------------------------------------------------

    async def _talk(self) -> None:
        for _ in range(self.chance.randint(2, 4)):
            await asyncio.sleep(self.chance.uniform(0, PAUSE_MAX_S))
            if self.is_over():
                return
            post = await self._post(on_active=self.chance.choice(POLICIES), **self._place())
            if post is None:
                continue
            choice = self.chance.random()
            if choice < DELETE:
                await self._delete(self.chance.choice(self.posts))
            elif choice < DELETE + CANCEL:
                await self._request("POST", f"/runs/{post.run_id}/cancel")

    def _place(self) -> dict[str, str]:
        """Returns where a post begins, if not at the end of the current branch."""
        if self.chance.random() >= BRANCH:
            return {}
        return {"parent_run_id": self.chance.choice(["root", *(post.run_id for post in self.posts)])}

    async def _answer_calls(self, client: StrictThreadClient) -> None:
        """Runs the calls of client tools, as the client sees them, until cancelled."""
        answered = 0
        async with asyncio.TaskGroup() as answering:
            while True:
                for post in self.posts[answered:]:
                    if post.text.startswith(FETCH):
                        run = TurnOfClient(self.urls, post.run_id, client)
                        self.givers.append(ResultGivers(run, self.chance, self.patience_s))
                        answering.create_task(self.givers[-1].answer_all())
                answered = len(self.posts)
                await asyncio.sleep(LOOK_S)

    def _note_results(self) -> None:
        """Notes the answers to results, and what is wrong with those of runs that nobody deleted."""
        for givers in self.givers:
            self.ledger.results.update(givers.answers)
            if givers.run_id not in self.ledger.deleted:
                self.ledger.violations += givers.check()

    async def _post(self, **fields: str) -> Post | None:
        """Posts a message; returns None if it was refused."""
        number = self.numbers()
        model = f"demo:delay_ms={self.chance.choice([5, 20])},tokens=30"
        text = self.chance.choice([
            f"talk {number}",
            f'call slow {{"n": {number}, "seconds": 0.5}} and quick {{"n": {number}}}',
            f'call pay {{"n": {number}, "seconds": 0.3}}',
            f'call fetch {{"n": {number}}}',
        ])  # fmt: skip
        body: dict[str, Any] = {"user_prompt": text, "model": model, "thread_id": self.thread_id, **fields}
        if text.startswith(FETCH):
            body["tools"] = [DEFINITION]
        response = await self._request("POST", "/runs", body, {"Idempotency-Key": f"storm-{number}"})
        answer = response.json()
        if response.status_code == httpx.codes.ACCEPTED:
            post = Post(answer["id"], text, fields["on_active"], fields.get("parent_run_id", ""))
            self.posts.append(post)
            self.ledger.posts[fields["on_active"]] += 1
            return post
        self._note_refusal(answer.get("code", str(response.status_code)), str(answer.get("detail")))
        return None

    def _note_refusal(self, code: str, detail: str) -> None:
        self.ledger.posts[code] += 1
        if code not in self.refusals:
            raise Violation(f"{self.thread_id}: a POST was refused: {code}: {detail}")

    async def _delete(self, post: Post) -> None:
        post.is_deleting = True
        response = await self._request("DELETE", f"/runs/{post.run_id}")
        if response.status_code == httpx.codes.CONFLICT:  # its message is in another run
            post.is_deleting = False
        elif response.status_code != httpx.codes.NO_CONTENT:
            raise Violation(f"DELETE of {post.run_id}: {response.status_code} {response.text}")

    async def _request(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Repeats a request at random gateways until it is answered."""
        deadline = time.monotonic() + self.patience_s
        async with httpx.AsyncClient(timeout=15) as http:
            while time.monotonic() < deadline:
                with suppress(httpx.TransportError):
                    url = self.chance.choice(self.urls) + path
                    response = await http.request(method, url, json=body, headers=headers)
                    if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                        return response
                await asyncio.sleep(LOOK_S)
        raise Violation(f"{method} {path} was never answered")

    # --- the end --------------------------------------------------------------

    async def _settle(self) -> Thread:
        """Waits until no run of the thread is left to do, and returns the thread."""
        deadline = time.monotonic() + self.patience_s
        while True:
            thread = await self._while_redis_is_down(self._read)
            open_runs = [post.run_id for post in self.posts if not await self._is_ended(post.run_id)]
            if not (thread.active_run_id or thread.waiting or open_runs):
                return thread
            if time.monotonic() > deadline:
                self.ledger.stranded.append(f"{self.thread_id}: {thread.active_run_id} {thread.waiting} {open_runs}")
                return thread
            await asyncio.sleep(LOOK_S)

    async def _read(self) -> Thread:
        identity = ThreadIdentity(DEFAULT_TENANT, "", self.thread_id)
        return await thread_store.read_thread(self.redis, identity, with_messages=True)

    async def _is_ended(self, run_id: str) -> bool:
        async def read() -> Sequence[bytes | None]:
            return list(await self.redis.hmget(keys.run(run_id), ["finished_at", "deleted_at"]))

        return any(await self._while_redis_is_down(read))

    async def _until_followed(
        self, clients: list[StrictThreadClient], following: list[asyncio.Task[None]], thread: Thread
    ) -> None:
        """Waits until the clients, which nobody tells that it is over, have all turns."""
        deadline = time.monotonic() + self.patience_s
        while not all(client.seq == len(thread.turns) and client.is_between_turns for client in clients):
            for client, task in zip(clients, following, strict=True):
                if task.done():
                    task.result()
                    raise Violation(f"{client}: it ended by itself")
            if time.monotonic() > deadline:
                behind = [f"{client} at turn {client.seq} of {len(thread.turns)}" for client in clients]
                raise Violation("; ".join(behind))
            await asyncio.sleep(LOOK_S)

    async def _check(self, thread: Thread, clients: list[StrictThreadClient]) -> None:
        """Compares the thread with a client that reads all of it, and with one that began in its middle."""
        late = StrictThreadClient(self.urls, self.thread_id)
        await self._read_to_end(late)
        for client in clients:
            for seen, turn in zip(client.turns, late.turns, strict=True):
                if not turn.is_deleted and seen.events != turn.events:
                    raise Violation(f"{client}: the events of {turn.run_id} are not those of a late client")
        if late.ids:
            place = self.chance.randrange(len(late.ids))
            resumed = StrictThreadClient(self.urls, self.thread_id, late.ids[place])
            await self._read_to_end(resumed)
            if resumed.ids != late.ids[place + 1 :]:
                raise Violation(f"{self.thread_id} resumed at {late.ids[place]}: other events follow")
        await self._while_redis_is_down(lambda: check_thread(self.redis, thread, self.posts, late, self.ledger))

    async def _read_to_end(self, client: StrictThreadClient) -> None:
        try:
            async with asyncio.timeout(self.patience_s):
                await client.follow(until_idle=True)
        except TimeoutError:
            self.ledger.stranded.append(f"{client}: a stream until the thread is idle did not end")

    async def _watch_running(self) -> None:
        """Looks again and again how many runs of the thread are running, until cancelled."""

        async def read() -> list[str]:
            run_ids = [post.run_id for post in self.posts]
            async with self.redis.pipeline(transaction=True) as pipe:
                for run_id in run_ids:
                    pipe.hmget(keys.run(run_id), ["status", "worker"])
                fields = await pipe.execute()
            # A process that ends a run claims it, too, but is no worker.
            return [r for r, (status, worker) in zip(run_ids, fields, strict=True) if status == b"running" and worker]

        while True:
            running = await self._while_redis_is_down(read)
            if len(running) > 1:
                self.ledger.two_active.append(f"{self.thread_id}: {running} are running")
            await asyncio.sleep(LOOK_S)

    async def _while_redis_is_down(self, read: Callable[[], Awaitable[T]]) -> T:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return await read()
            except REDIS_AWAY as exc:
                if time.monotonic() > deadline:
                    raise Violation(f"{self.thread_id}: Redis did not come back") from exc
            await asyncio.sleep(LOOK_S)
