"""The API answers the examples of /openapi.json as it describes. `make fuzz` sends thousands of other requests."""

from pathlib import Path

from redis.asyncio import Redis

from tests.support.api_fuzz import fuzz_api


async def test_api_answers_as_its_openapi_document_describes(tmp_path: Path, redis_url: str, redis: Redis) -> None:
    verdict = await fuzz_api(tmp_path, redis_url, is_locked=True, has_key=True, examples=0, seed=1)

    assert verdict.is_passed, verdict.output
    assert verdict.requests > 20
