"""Fixtures: the gateway on a socket, and clients of it."""

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand
from tests.support.socket_server import serving

Claim = Callable[..., object]


@pytest.fixture
async def url(app: Starlette, settings: Settings) -> AsyncIterator[str]:
    """The URL of the gateway."""
    async with serving(app, settings) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def hub(app: Starlette) -> Hub:
    """The hub of the gateway."""
    return app.state.gateway.hub


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client of the gateway."""
    async with httpx.AsyncClient(base_url=url) as http:
        yield http


@pytest.fixture
async def openai(url: str) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's SDK as a client of the gateway."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


@pytest.fixture
async def claim(redis: Redis) -> AsyncIterator[Claim]:
    """Claims runs that a client created, so that the test can append their events."""
    claimed: list[RunByHand] = []

    async def claim_run(run_id: str) -> RunByHand:
        claimed.append(await runs_by_hand.claim_by_hand(redis, run_id))
        return claimed[-1]

    yield claim_run
    for run in claimed:
        await runs_by_hand.stop(run)
