"""Measures a worker's CPU per chunk of a model, from the provider's socket to the append.

`ours` is the worker's own way of a model stage: the openai SDK's connection, the decoder,
the merger, the producer and its appends to a real server. Beside it what only reads:
the SDK's typed chunks, its raw lines, and httpx with orjson. Two paces: an answer as fast as
it can be read, where appends travel in bursts; and many answers at a model's pace,
where nearly every chunk is an append of its own.

The same for a token of the Responses API and of the Messages API, which has to cost at most 1.3 times as much.

It also counts the Python functions that one paced chunk calls, in our code and in libraries: a number that does not
depend on the machine, but on the versions of the libraries.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import openai
import orjson
from redis.asyncio import Redis

from benchmarks import lab
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.storage import run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.worker.execution.producer import Producer
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.stages.model_stage import model_stage

TTL_S = 3600
CHUNKS = lab.sized(20_000, 3_000)
ANSWERS = lab.sized(100, 20)
PER_S = 20
PACED_CHUNKS = lab.sized(200, 20)
CALLS_PER_S = 200
APIS = ("responses", "messages")
MESSAGES = [{"role": "user", "content": "hello"}]
ROOT = Path(__file__).parent.parent
COUNTED = (str(ROOT / "src"), "site-packages")


class Ours:
    """A model stage as the worker runs it."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._line = PipelinedConnection(redis, settings.redis_timeout_s)
        self._settings = settings
        self._model = ModelClient.from_settings(settings)

    async def answer(self, script: str) -> None:
        """Runs one model stage of one run."""
        run_id = ids.new_run_id()
        await run_scripts.create(
            self._redis,
            run_id,
            tenant="default",
            model="bench",
            request=b"{}",
            event="run_queued",
            data=b"{}",
            life_s=TTL_S,
        )
        claim = await run_scripts.claim(self._redis, run_id, "bench")
        assert claim is not None
        producer = Producer(
            self._line, run_id, claim.attempt, claim.last_id, stage_ids=["run"],
            pending_max_bytes=self._settings.pending_max_bytes,
        )  # fmt: skip
        async with producer:
            request = ModelRequest(model=script, messages=MESSAGES)
            async with aclosing(model_stage("extraction", self._model, request, set())) as events:
                async for event in events:
                    producer.put(event)
                    if producer.is_full:
                        await producer.wait_for_room()
            await producer.flush()

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._model.aclose()
        await self._line.aclose()


async def _sdk_typed(client: openai.AsyncOpenAI, script: str) -> None:
    stream = await client.chat.completions.create(model=script, messages=MESSAGES, stream=True)
    async for chunk in stream:
        if chunk.choices:
            _ = chunk.choices[0].delta.content


async def _sdk_lines(client: openai.AsyncOpenAI, script: str) -> None:
    create = client.chat.completions.with_streaming_response.create
    async with create(model=script, messages=MESSAGES, stream=True) as response:
        async for line in response.iter_lines():
            if line.startswith("data: {"):
                orjson.loads(line[6:])


async def _httpx(client: httpx.AsyncClient, script: str) -> None:
    body = {"model": script, "messages": MESSAGES, "stream": True}
    async with client.stream("POST", "/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                orjson.loads(line[6:])


async def measure() -> dict[str, Any]:
    """Measures every reader at both paces, in this process."""
    async with lab.Lab() as place, AsyncExitStack() as stack:
        redis = await place.start_redis()
        provider = await place.python("benchmarks.scripted_provider")
        url = await provider.line_with("listening on ") + "/v1"
        settings = Settings(redis_url=place.redis_url, openai_base_url=url, openai_api_key="bench")
        sdk = openai.AsyncOpenAI(base_url=url, api_key="bench", max_retries=0)
        plain = httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None), timeout=60)
        ours = Ours(redis, settings)
        by_api = {api: Ours(redis, settings.model_copy(update={"provider_api": api})) for api in APIS}
        for close in (ours.aclose, sdk.close, plain.aclose, *(other.aclose for other in by_api.values())):
            stack.push_async_callback(close)
        ways: dict[str, Callable[[str], Awaitable[None]]] = {
            "ours": ours.answer,
            "sdk_typed": lambda script: _sdk_typed(sdk, script),
            "sdk_lines": lambda script: _sdk_lines(sdk, script),
            "httpx_orjson": lambda script: _httpx(plain, script),
        }
        result: dict[str, Any] = {"fast_us": {}, "paced_us": {}, "api_us": {}}
        for name, ask in ways.items():
            result["fast_us"][name] = await _cost(ask, 1, CHUNKS, 0)
            result["paced_us"][name] = await _cost(ask, ANSWERS, PACED_CHUNKS, PER_S)
        for api, other in by_api.items():
            result["api_us"][api] = await _cost(other.answer, 1, CHUNKS, 0)
        result["calls_per_paced_chunk"] = await _calls_per_chunk(ours.answer)
        return result


async def _calls_per_chunk(ask: Callable[[str], Awaitable[None]]) -> float:
    """Counts calls of Python functions as the difference between a long and a short answer."""
    few, many = 20, 120
    counts = []
    for chunks in (few, few, many):  # the first answer opens the connections
        called = 0

        def count(frame: FrameType, event: str, _arg: object) -> None:
            nonlocal called
            called += event == "call" and any(part in frame.f_code.co_filename for part in COUNTED)

        sys.setprofile(count)
        try:
            await ask(f"chunks={chunks},per_s={CALLS_PER_S}")
        finally:
            sys.setprofile(None)
        counts.append(called)
    return (counts[2] - counts[1]) / (many - few)


async def _cost(ask: Callable[[str], Awaitable[None]], answers: int, chunks: int, per_s: float) -> float:
    """Measures the difference between short and long answers, so that the request itself does not count."""
    await ask("chunks=50")
    few = chunks // 10
    short = await _cpu_s(ask, answers, few, per_s)
    return (await _cpu_s(ask, answers, chunks, per_s) - short) / (answers * (chunks - few)) * 1e6


async def _cpu_s(ask: Callable[[str], Awaitable[None]], answers: int, chunks: int, per_s: float) -> float:
    started = time.process_time()
    await asyncio.gather(*(ask(f"chunks={chunks},per_s={per_s}") for _ in range(answers)))
    return time.process_time() - started


if __name__ == "__main__":
    lab.run("worker_chunk", measure)
