"""Runs the shell blocks of a documentation page."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.needs import skip_or_fail

ROOT = Path(__file__).parents[2]
BLOCK_S = 60
# The output of redis-cli when Redis refuses a command; the exit code is still 0.
REFUSED = re.compile(r"^(\(error\)|ERR |WRONGTYPE|NOPERM|NOSCRIPT)", re.MULTILINE)


def blocks(page: str, language: str = "sh") -> list[str]:
    """Returns the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


async def type_in(script: str, **env: str) -> str:
    """Runs a block in bash and returns its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script,
        cwd=ROOT, env={**os.environ, **env, "PATH": path},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(BLOCK_S):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{script}\n{output.decode()}"
    assert not REFUSED.search(output.decode()), f"{script}\n{output.decode()}"
    return output.decode()


def need(program: str) -> None:
    """Skips the test if the program is missing; in CI, fails it."""
    if shutil.which(program) is None:
        skip_or_fail(program)
