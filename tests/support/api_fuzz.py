"""Runs Schemathesis with all its checks against a live gateway's `/openapi.json`."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import TENANT_WIDE
from stagebus.shared.errors import StagebusError
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.store import api_keys, run_store
from tests.support.system import ROOT, Process

CONFIG = ROOT / "tests" / "schemathesis.toml"
LOCKED = {"STAGEBUS_AUTH": "keys", "STAGEBUS_SECRET": "a secret of the tests that is long enough"}
END_EVERY_S = 0.1


class Verdict(NamedTuple):
    """The result: whether all checks passed, the number of requests, and Schemathesis's output."""

    is_passed: bool
    requests: int
    output: str


async def fuzz_api(
    folder: Path, redis_url: str, *, is_locked: bool, has_key: bool, examples: int, seed: int
) -> Verdict:
    """Starts a gateway and sends it valid and invalid requests, as its OpenAPI document describes them.

    Args:
        examples: random requests per operation, in addition to those at the limits of its schema; 0: only the document's
            own examples.
    """
    redis = redis_client.connect(Settings(redis_url=redis_url))
    gateway = Process(
        "gateway", ["-m", "stagebus.gateway", "--port", "0"],
        {"STAGEBUS_REDIS_URL": redis_url, "STAGEBUS_LOG_LEVEL": "WARNING", **(LOCKED if is_locked else {})}, folder,
    )  # fmt: skip
    gateway.start()
    ending = asyncio.create_task(_end_runs(redis, Settings(redis_url=redis_url)))
    try:
        args = ["--checks", "all", "--max-examples", str(examples or 1), "--seed", str(seed), "--no-color"]
        # Without the stateful phase: it would follow links to streams of runs that no worker executes.
        args += [
            "--phases",
            "examples,coverage,fuzzing" if examples else "examples",
            "--generation-database",
            "none",
            "--request-timeout",
            "2",
        ]
        if has_key:
            _, key = await api_keys.create(redis, tenant="t", scopes=TENANT_WIDE)
            args += ["--header", f"Authorization: Bearer {key}"]
        program = Path(sys.executable).parent / "schemathesis"
        process = await asyncio.create_subprocess_exec(
            program, "--config-file", CONFIG, "run", f"{await gateway.ready()}/openapi.json", *args,
            cwd=folder, env={**os.environ, "COLUMNS": "120"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        await redis_client.close(redis)
        await gateway.kill()
    found = re.search(r"(\d+) generated", output)
    assert "Traceback" not in gateway.log(), gateway.log()
    return Verdict(process.returncode == 0, int(found[1]) if found else 0, output)


async def _end_runs(redis: Redis, settings: Settings) -> None:
    """Ends all runs in place of a worker, so that their streams end, too."""
    while True:
        await asyncio.sleep(END_EVERY_S)
        for run_id in await redis.zrange(keys.ACTIVE, 0, -1):
            try:
                await run_store.cancel_run(redis, settings, run_id.decode())
            except StagebusError:
                continue
