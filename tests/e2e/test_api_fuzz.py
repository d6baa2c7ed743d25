"""The API answers as /openapi.json describes. `make fuzz` sends more requests, also without a key."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.api_fuzz import fuzz_api


@pytest.mark.timeout(300)
async def test_api_answers_as_its_openapi_document_describes(tmp_path: Path, redis_url: str, redis: Redis) -> None:
    verdict = await fuzz_api(tmp_path, redis_url, is_locked=True, has_key=True, examples=0, seed=1)

    assert verdict.is_passed, verdict.output
    assert verdict.requests > 100
