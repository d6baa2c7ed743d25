"""The API is as it is described; `make fuzz` looks further, and without a key, too."""

from pathlib import Path

from redis.asyncio import Redis

from tests.support.api_fuzz import fuzz_api


async def test_no_request_finds_an_undescribed_answer(tmp_path: Path, redis_url: str, redis: Redis) -> None:
    verdict = await fuzz_api(tmp_path, redis_url, is_locked=True, has_key=True, examples=0, seed=1)

    assert verdict.is_passed, verdict.output
    assert verdict.requests > 100
