"""Chaos test: the whole system as real processes, a hundred runs at a time and random faults.

    python -m tests.support.chaos --minutes 10 --seed 7        (make chaos MINUTES=10 SEED=7)

With `--client js` or `python` (CLIENT=js) that client follows the runs and threads, and its connections are cut at any byte.
The program prints a ledger. It exits with 0 only if no event was lost, doubled or reordered, no run was stranded, no
tool paid twice, and no key was left without a TTL.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson

from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.storage import keys
from tests.support.deciders import Deciders
from tests.support.deleted_conversation import DeletedConversation
from tests.support.fault_tools import TOOLS
from tests.support.immortal_keys import immortal_keys
from tests.support.js_client import JsClient, JsClients, js_clients
from tests.support.proxy import Proxy
from tests.support.python_client import PythonClient
from tests.support.result_givers import DEFINITION, ResultGivers
from tests.support.storm_ledger import Ledger
from tests.support.storm_webhooks import StormWebhooks, storm_webhooks
from tests.support.strict_client import TERMINAL, StrictClient, Violation
from tests.support.system import Process, System
from tests.support.thread_storm import Conversation
from tests.support.view_readers import (
    AguiReader,
    ChatReader,
    DurableReader,
    ResponsesReader,
    UiMessageReader,
    ViewReader,
    expected_text,
)

WORKERS = 3
GATEWAYS = 2
SETTLE_S = 90  # the longest that a run may take after the faults have stopped
APPROVAL_WAIT_S = 4  # short, so that undecided calls expire
THREAD_SHARE = 5  # every fifth client is a conversation
DELETED_SHARE = 0.25  # of the conversations


class Storm:
    """Creates runs, clients and faults from one seed."""

    def __init__(
        self,
        system: System,
        proxy: Proxy,
        seed: int,
        parallel_runs: int,
        notes: Path,
        webhooks: StormWebhooks,
        client: str = "strict",
        js: JsClients | None = None,
    ) -> None:
        self.system = system
        self.proxy = proxy
        self.random = random.Random(seed)
        self.ledger = Ledger(seed)
        self._parallel_runs = parallel_runs
        self._notes = notes
        self._webhooks = webhooks
        self._client_name = client
        self._js = js
        self._number = 0
        self._is_over = False
        self._texts: dict[str, str] = {}
        self._keys: dict[str, str] = {}  # Idempotency-Keys by run

    async def rage(self, seconds: float) -> Ledger:
        """Injects faults for so long, each kind at least once, then lets all runs end and counts."""
        lanes = [
            asyncio.create_task(self._lane() if number % THREAD_SHARE else self._thread_lane())
            for number in range(self._parallel_runs)
        ]
        deadline = time.monotonic() + seconds
        names: list[str] = []
        while time.monotonic() < deadline or len(self.ledger.faults) < len(FAULTS):
            await asyncio.sleep(self.random.uniform(0.2, 1.2))
            # Each kind once, in random order, then each kind again: even a short storm has all of them.
            names = names or self.random.sample(list(FAULTS), k=len(FAULTS))
            name = names.pop()
            self.ledger.faults[name] += 1
            await FAULTS[name](self)
        self._is_over = True
        await self._calm_down()
        await asyncio.gather(*lanes)
        await self._count()
        return self.ledger

    # --- runs and their clients ----------------------------------------------

    async def _lane(self) -> None:
        while not self._is_over:
            number = self._next_number()
            body = self._body(number)
            run_id = await self._post(number, body)
            if run_id is not None:
                self.ledger.runs += 1
                await self._watch(run_id, body)

    async def _thread_lane(self) -> None:
        while not self._is_over:
            kind = DeletedConversation if self.random.random() < DELETED_SHARE else Conversation
            conversation = kind(
                self.system.urls, self.system.redis, f"storm {self._next_number()}", self.random, self._next_number,
                lambda: self._is_over, SETTLE_S, self._client_name, self._js,
            )  # fmt: skip
            self.ledger.threads.add(await conversation.run())

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _body(self, number: int) -> dict[str, Any]:
        pace = f"delay_ms={self.random.choice([5, 20, 40])}"
        calls = [
            ("quick", {"n": number}),
            ("slow", {"n": number, "seconds": 0.5}),
            ("pay", {"n": number, "seconds": 0.5}),
            ("sign", {"n": number, "seconds": 0.5}),
            ("order", {"n": number}),
            ("fetch", {"n": number}),
        ]
        match self.random.randrange(4):
            case 0:
                return {"user_prompt": f"talk {number}", "model": f"demo:{pace},tokens=60"}
            case 1:
                trouble = self.random.choice(["status=503", "cut_after=4", "garbage_after=3", "status=429"])
                return {"user_prompt": f"talk {number}", "model": f"demo:{pace},tokens=40,fail_times=1,{trouble}"}
            case _:
                chosen = self.random.sample(calls, k=self.random.randint(1, 3))
                text = " and ".join(f"{name} {orjson.dumps(arguments).decode()}" for name, arguments in chosen)
                body = {"user_prompt": f"call {text}", "model": f"demo:{pace}"}
                names = [name for name, _ in chosen]
                tools = [DEFINITION if name == "fetch" else name for name in names]
                return {**body, "tools": tools} if "fetch" in names else body

    async def _post(self, number: int, body: dict[str, Any]) -> str | None:
        """Repeats a POST with one Idempotency-Key until it is answered; returns the run's id."""
        headers = {"Idempotency-Key": (key := f"storm-{number}")}
        deadline = time.monotonic() + SETTLE_S
        async with httpx.AsyncClient(timeout=15) as http:
            while time.monotonic() < deadline:
                with suppress(httpx.TransportError):
                    response = await http.post(
                        f"{self.random.choice(self.system.urls)}/runs", json=body, headers=headers
                    )
                    if response.status_code == 202:
                        self._keys[response.json()["id"]] = key
                        return str(response.json()["id"])
                    if response.status_code != 503:
                        self.ledger.violations.append(f"POST: {response.status_code} {response.text}")
                        return None
                await asyncio.sleep(0.1)
        self.ledger.stranded.append("a POST that was never answered")
        return None

    async def _watch(self, run_id: str, body: dict[str, Any]) -> None:
        clients = [self._client(run_id)]
        if self.random.random() < 0.3:
            clients.append(
                StrictClient(self.system.urls, run_id, self.random.choice(["run", "extraction", "tools", "synthesis"]))
            )
        reader = self._view_reader(run_id, body)
        following = [asyncio.create_task(client.follow(10_000, self._patience)) for client in clients]
        following += [asyncio.create_task(reader.follow(10_000, self._patience))] if reader else []
        deciders = Deciders(clients[0], self.random, SETTLE_S)
        givers = ResultGivers(clients[0], self.random, SETTLE_S)
        answering = [asyncio.create_task(deciders.decide_all()), asyncio.create_task(givers.answer_all())]
        if self.random.random() < 0.1:
            await self._cancel(run_id)
        try:
            async with asyncio.timeout(SETTLE_S * 4):
                await asyncio.gather(*following)
        except Violation as exc:
            self.ledger.violations.append(str(exc))
        except TimeoutError:
            self.ledger.stranded.append(f"{run_id} {body} {clients[0].names()[-3:]}")
        finally:
            for task in (*following, *answering):
                task.cancel()
            await asyncio.gather(*following, *answering, return_exceptions=True)
        self.ledger.violations += [*deciders.check(), *givers.check()]
        self.ledger.decisions.update(deciders.answers)
        self.ledger.results.update(givers.answers)
        self._note(clients, body)
        if reader is not None:
            self._note_view(reader, clients[0])

    def _view_reader(self, run_id: str, body: dict[str, Any]) -> ViewReader | None:
        """Returns a client of a view for one run in three."""
        if self.random.random() > 1 / 3:
            return None
        kinds = [ResponsesReader, UiMessageReader, AguiReader, DurableReader]
        # A chat completion creates the run, and has no way to define a client's tool.
        kind = self.random.choice(kinds if "tools" in body else [*kinds, ChatReader])
        if kind is not ChatReader:
            return kind(self.system.urls, run_id)
        messages = [{"role": "user", "content": body["user_prompt"]}]
        return ChatReader(self.system.urls, run_id, {"model": body["model"], "messages": messages}, self._keys[run_id])

    def _note_view(self, reader: ViewReader, native: StrictClient) -> None:
        self.ledger.views[type(reader).__name__.removesuffix("Reader")] += 1
        self.ledger.connections += reader.connections
        if native.events and reader.end and reader.end != native.events[-1].event:
            self.ledger.violations.append(f"{reader}: ended with {reader.end}, not {native.events[-1].event}")
        if reader.end == "done" and reader.text != expected_text(native):
            self.ledger.wrong_texts.append(f"{reader}: {reader.text!r} and {expected_text(native)!r}")

    def _client(self, run_id: str) -> StrictClient:
        if self._client_name == "strict":
            return StrictClient(self.system.urls, run_id)
        cut_max = self.random.choice([0, 5_000, 50_000])
        if self._js is not None:
            return JsClient(self._js, self.system.urls, run_id, cut_max)
        return PythonClient(self.system.urls, run_id, cut_max)

    def _patience(self) -> int | None:
        return self.random.choice([None, None, 1, 10, 50])

    async def _cancel(self, run_id: str) -> None:
        await asyncio.sleep(self.random.uniform(0, 2))
        async with httpx.AsyncClient(timeout=15) as http:
            with suppress(httpx.TransportError):
                await http.post(f"{self.random.choice(self.system.urls)}/runs/{run_id}/cancel")

    def _note(self, clients: list[StrictClient], body: dict[str, Any]) -> None:
        merged = clients[0]
        self.ledger.events += sum(len(client.events) for client in clients)
        self.ledger.connections += sum(client.connections for client in clients)
        if not merged.events:
            return
        last = merged.events[-1]
        self.ledger.ends[last.event if last.event != "error" else f"error {last.data.get('code')}"] += 1
        self.ledger.stage_restarts += merged.names().count("stage_restarted")
        if last.event == "done" and body["user_prompt"].startswith("talk"):
            # The demo model answers prompts of the same shape with the same words, apart from the prompt in them.
            shape = f"{body['model'].split('tokens=')[1].split(',')[0]} {len(body['user_prompt'])}"
            text = merged.text("extraction").replace(body["user_prompt"], "…")
            if self._texts.setdefault(shape, text) != text:
                self.ledger.wrong_texts.append(f"{merged.run_id}: {text!r} and {self._texts[shape]!r}")
        for client in clients[1:]:
            mine = [e for e in merged.events if e.data["stage_id"] == client.stage_id or e.event in TERMINAL]
            if client.events != mine:
                self.ledger.violations.append(
                    f"{client.run_id}: the stream of {client.stage_id} differs from the merged one"
                )

    # --- faults --------------------------------------------------------------

    async def kill_worker(self) -> None:
        await self._restart(self.random.choice(self.system.workers), is_killed=True)

    async def drain_worker(self) -> None:
        await self._restart(self.random.choice(self.system.workers), is_killed=False)

    async def _restart(self, worker: Process, *, is_killed: bool) -> None:
        worker.signal(signal.SIGCONT)
        await (worker.kill() if is_killed else worker.terminate(60))
        worker.start()

    async def freeze_worker(self) -> None:
        worker = self.random.choice(self.system.workers)
        worker.signal(signal.SIGSTOP)
        asyncio.get_running_loop().call_later(self.random.uniform(0.5, 4), self._thaw, worker, worker.pid)

    def _thaw(self, worker: Process, pid: int) -> None:
        if worker.is_running and worker.pid == pid:
            worker.signal(signal.SIGCONT)

    async def kill_gateway(self) -> None:
        await self.system.restart_gateway(self.random.randrange(GATEWAYS), is_killed=True)

    async def drain_gateway(self) -> None:
        await self.system.restart_gateway(self.random.randrange(GATEWAYS))

    async def cut_connections(self) -> None:
        self.proxy.cut()

    async def lose_replies(self) -> None:
        self.proxy.drop_replies = True
        await asyncio.sleep(0.05)
        self.proxy.drop_replies = False
        self.proxy.cut()

    async def hang_network(self) -> None:
        self.proxy.hang()
        await asyncio.sleep(self.random.uniform(0.3, 3))
        self.proxy.flow()

    async def cut_pubsub(self) -> None:
        await self.system.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def restart_redis(self) -> None:
        self.system.valkey.stop()
        await asyncio.sleep(self.random.uniform(0, 2))
        self.system.valkey.start()

    # --- the end -------------------------------------------------------------

    async def _calm_down(self) -> None:
        self.proxy.flow()
        for worker in self.system.workers:
            if worker.is_running:
                worker.signal(signal.SIGCONT)

    async def _count(self) -> None:
        redis = self.system.redis
        deadline = time.monotonic() + 30
        while await redis.zcard(keys.ACTIVE) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self.ledger.left_active = await redis.zcard(keys.ACTIVE)
        self.ledger.left_reserved = int(await redis.hget(keys.tokens(DEFAULT_TENANT), "reserved") or 0)
        self.ledger.left_reserved += sum(map(int, await redis.hvals(keys.RESERVED)))
        self.ledger.untold = await self._webhooks.find_untold(
            redis, {*self._keys, *self.ledger.threads.kept}, self.ledger.threads.deleted
        )
        self.ledger.immortal_keys = await immortal_keys(redis)
        paid = Counter(
            line for line in self._notes.read_text().splitlines() if line.startswith(("pay ", "sign ", "order "))
        )
        self.ledger.paid_twice = [line for line, count in paid.items() if count > 1]


FAULTS: dict[str, Callable[[Storm], Awaitable[None]]] = {
    "worker killed": Storm.kill_worker,
    "worker drained": Storm.drain_worker,
    "worker frozen": Storm.freeze_worker,
    "gateway killed": Storm.kill_gateway,
    "gateway drained": Storm.drain_gateway,
    "connections cut": Storm.cut_connections,
    "replies lost": Storm.lose_replies,
    "network hung": Storm.hang_network,
    "pub/sub cut": Storm.cut_pubsub,
    "Redis restarted": Storm.restart_redis,
}


async def storm(seconds: float, seed: int, parallel_runs: int, folder: Path, client: str = "strict") -> Ledger:
    """Runs a chaos test of so many seconds; `client` is strict, python (`stagebus.client`) or js."""
    notes = folder / "tools.log"
    notes.touch()
    env = {"STAGEBUS_TOOLS": TOOLS, "FAULT_TOOLS_LOG": str(notes), "STAGEBUS_RUN_TRIES_MAX": "1000"}
    env["STAGEBUS_APPROVAL_WAIT_S"] = env["STAGEBUS_CALL_WAIT_S"] = str(APPROVAL_WAIT_S)
    system = System(folder, gateways=GATEWAYS, workers=WORKERS, env=env)
    async with Proxy(system.redis_port) as proxy, storm_webhooks(folder) as webhooks:
        for name, value in webhooks.env.items():
            system.set_env(name, value)
        system.set_env("STAGEBUS_REDIS_URL", f"redis://127.0.0.1:{proxy.port}/0")
        async with system, js_clients() if client == "js" else nullcontext() as js:
            return await Storm(system, proxy, seed, parallel_runs, notes, webhooks, client, js).rage(seconds)


def main() -> None:
    """Runs a chaos test and prints its ledger."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--runs", type=int, default=100, help="runs at a time")
    parser.add_argument(
        "--client",
        choices=["strict", "python", "js"],
        default="strict",
        help="the client that follows the runs and threads",
    )
    options = parser.parse_args()
    print(f"storm of {options.minutes:g} minutes, seed {options.seed}")
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    ledger = asyncio.run(storm(options.minutes * 60, options.seed, options.runs, folder, options.client))
    print(ledger)
    sys.exit(0 if ledger.is_clean else 1)


if __name__ == "__main__":
    main()
