"""Other projects' clients for Node, which tests drive by lines of JSON."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from tests.support.needs import skip_or_fail

THIRD_PARTY = Path(__file__).parents[1] / "clients" / "third_party"
ANSWER_MAX_S = 30.0


def need_third_party() -> None:
    """Skips the test if Node or the packages are missing; in CI, fails it."""
    if shutil.which("node") is None or not (THIRD_PARTY / "node_modules").exists():
        skip_or_fail("node, or tests/clients/third_party/node_modules, which `make test` installs,")


class NodeDriver:
    """A script of `tests/clients/third_party` that answers one command at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, **command: Any) -> Any:
        """Sends a command and returns its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(orjson.dumps(command) + b"\n")
        async with asyncio.timeout(ANSWER_MAX_S):
            line = await stdout.readline()
        assert line, "the script has ended"
        return orjson.loads(line)


@asynccontextmanager
async def node_driver(script: str, *args: str) -> AsyncIterator[NodeDriver]:
    """Starts a script; its end is awaited on exit. Without Node or the packages, the test is skipped; in CI it fails."""
    need_third_party()
    process = await asyncio.create_subprocess_exec(
        "node", script, *args, cwd=THIRD_PARTY, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )  # fmt: skip
    try:
        yield NodeDriver(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()
