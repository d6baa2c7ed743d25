"""Fixtures for Node and the built JavaScript client."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.needs import skip_or_fail

JS = Path(__file__).parents[3] / "clients" / "js"


@pytest.fixture(scope="session")
def node() -> str:
    """Return the path of Node."""
    path = shutil.which("node")
    if path is None:
        skip_or_fail("node")
    if not (JS / "node_modules" / "typescript").exists():
        skip_or_fail("clients/js/node_modules, which `make test` installs,")
    return str(path)


@pytest.fixture(scope="session")
def client_js(node: str) -> Path:
    """Build the client, once for all pytest processes, and return its folder."""
    stamp = JS / "dist" / ".built"
    with (JS / "node_modules" / ".build-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = [JS / "tsconfig.json", JS / "package.json", *(JS / "src").iterdir()]
        if not stamp.exists() or stamp.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            subprocess.run(["npm", "run", "--silent", "build"], cwd=JS, check=True, timeout=120)
            stamp.touch()
    return JS


def run_node(*args: object, stdin: bytes | None = None, cwd: Path = JS, timeout_s: float = 60) -> bytes:
    """Run a program and return its output; if it fails, the test fails with the output."""
    command = ["node", *map(str, args)]
    outcome = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout_s, check=False, cwd=cwd)
    assert outcome.returncode == 0, (outcome.stdout + outcome.stderr).decode()
    return outcome.stdout
