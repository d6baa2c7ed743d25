"""The page's modules that need no browser, tested by Node's own test runner, and their contract with the events."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.events import EVENT_BY_NAME, TERMINAL_NAMES
from tests.browser.conftest import skip_or_fail

HERE = Path(__file__).parent
STREAM_JS = HERE.parent.parent / "gateway" / "static" / "stream.js"


@pytest.fixture
def node() -> str:
    """Node's path."""
    path = shutil.which("node")
    if path is None:
        skip_or_fail("node")
    return str(path)


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.test.mjs")))
def test_modules(node: str, name: str) -> None:
    outcome = subprocess.run([node, "--test", HERE / name], capture_output=True, text=True, timeout=60, check=False)

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_page_listens_to_every_event(node: str) -> None:
    """An EventSource gives only the events that are asked for by name; one too few would look like a loss."""
    script = f"""
        import {{ EVENT_NAMES, TERMINAL_NAMES }} from {json.dumps(STREAM_JS.as_uri())};
        console.log(JSON.stringify([EVENT_NAMES, [...TERMINAL_NAMES]]));
    """
    command = [node, "--input-type=module", "--eval", script]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)

    names, terminal_names = json.loads(outcome.stdout)
    assert set(names) == set(EVENT_BY_NAME)
    assert set(terminal_names) == TERMINAL_NAMES
