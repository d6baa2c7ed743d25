"""The protocol's own conformance tests, as far as they are about reading, against the reader over a log in memory."""

import asyncio
import os
import re
import socket
import sys
from contextlib import suppress

import orjson

from tests.support.system import free_port
from tests.support.third_party import THIRD_PARTY, need_third_party
from tests.support.waiting import until

ROOT = THIRD_PARTY.parents[2]
LONG_POLL_S = "0.3"
TEST_COUNT = 116
GROUPS = (
    "Read Operations", "Long-Poll Operations", "Long-Poll Edge Cases", "Browser Security Headers", "HEAD Metadata",
    "Offset Validation and Resumability", "Caching and ETag", "Chunking and Large Payloads",
    "Read-Your-Writes Consistency", "SSE Mode", "JSON Mode",
    "Property-Based Tests (fast-check) Byte-Exactness Property",
    "Property-Based Tests (fast-check) Immutability Properties",
    "Property-Based Tests (fast-check) Offset Validation Properties",
    "Stream Closure HEAD with Stream Closure", "Stream Closure Read Closed Streams (Catch-up)",
    "Stream Closure Long-poll with Stream Closure", "Stream Closure SSE with Stream Closure",
)  # fmt: skip


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


async def test_reader_passes_the_conformance_tests() -> None:
    need_third_party()
    port, env = free_port(), {**os.environ, "STAGEBUS_LONG_POLL_S": LONG_POLL_S}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.durable_streams_server", str(port), cwd=ROOT, env=env
    )
    try:
        await until(lambda: listens(port))
        names = "|".join(map(re.escape, GROUPS))
        suite = await asyncio.create_subprocess_exec(
            "node", "node_modules/vitest/vitest.mjs", "run", "durable_conformance", "--reporter=json",
            "--testNamePattern", f"^({names})", cwd=THIRD_PARTY, stdout=asyncio.subprocess.PIPE,
            env={**env, "CONFORMANCE_TEST_URL": f"http://127.0.0.1:{port}"},
        )  # fmt: skip
        output, _ = await suite.communicate()
    finally:
        server.terminate()
        await server.wait()

    report = orjson.loads(output)
    tests = [test for file in report["testResults"] for test in file["assertionResults"]]
    failed = {test["fullName"]: test["failureMessages"] for test in tests if test["status"] == "failed"}
    assert failed == {}
    assert report["numPassedTests"] == TEST_COUNT
