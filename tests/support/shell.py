"""A page's shell blocks, and a shell to type them into."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK_S = 60
# What redis-cli prints where Redis refuses a command; its exit code is 0 all the same.
REFUSED = re.compile(r"^(\(error\)|ERR |WRONGTYPE|NOPERM|NOSCRIPT)", re.MULTILINE)


def blocks(page: str, language: str = "sh") -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


async def type_in(script: str, **env: str) -> str:
    """Run a block as a shell would; what it prints."""
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
    if shutil.which(program) is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{program} is missing")
