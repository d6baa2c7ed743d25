"""Rival: a plain arq worker with one job per run, which uses OpenAI's SDK.

    python -m benchmarks.rivals.arq_worker redis://127.0.0.1:6379/0 http://127.0.0.1:8000/v1 10     prints `ready`

Everything is as arq has it unless one says otherwise, so it looks for jobs every 0.5 s; the last argument is how many
it carries out at once.
"""

import sys
from typing import Any

import openai
import uvloop
from arq import Worker
from arq.connections import RedisSettings
from openai.resources.chat import completions  # noqa: F401 - else the first job waits for it to be loaded

JOB_S = 3600


async def ask(context: dict[str, Any], model: str, prompt: str) -> None:
    """Reads the model's answer; this is the job."""
    messages: Any = [{"role": "user", "content": prompt}]
    client: openai.AsyncOpenAI = context["openai"]
    async for _ in await client.chat.completions.create(model=model, messages=messages, stream=True):
        pass


async def _main(redis_url: str, provider_url: str, jobs_max: str) -> None:
    async def start(context: dict[str, Any]) -> None:
        context["openai"] = openai.AsyncOpenAI(base_url=provider_url, api_key="bench", timeout=JOB_S)
        print("ready", flush=True)

    redis_settings = RedisSettings.from_dsn(redis_url)
    worker = Worker([ask], redis_settings=redis_settings, max_jobs=int(jobs_max), job_timeout=JOB_S, on_startup=start)
    await worker.async_run()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
