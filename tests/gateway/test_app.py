import pytest
from redis.asyncio import Redis

from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import StorageUnfit


async def test_start_fails_on_unsuitable_redis(redis: Redis, settings: Settings) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    app = create_app(settings)
    try:
        with pytest.raises(StorageUnfit, match="noeviction"):
            async with app.router.lifespan_context(app):
                pass
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_start_fails_on_unreachable_redis() -> None:
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))

    with pytest.raises(StorageUnfit, match="STAGEBUS_REDIS_URL"):
        async with app.router.lifespan_context(app):
            pass
