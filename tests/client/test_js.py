"""The JavaScript client: its own tests in Node, and that what is made of it is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.events import EVENT_BY_NAME, TERMINAL_NAMES
from tests.client.conftest import JS, run_node

VENDOR = JS.parent.parent / "gateway" / "static" / "vendor"
MAKE = "run `make client`"


@pytest.mark.parametrize("name", sorted(path.name for path in (JS / "test").glob("*.test.mjs")))
def test_modules(client_js: Path, name: str) -> None:
    run_node("--test", client_js / "test" / name)


def test_types_are_those_of_the_gateway_s_schemas(client_js: Path) -> None:
    schemas = subprocess.run([sys.executable, JS / "scripts" / "schemas.py"], capture_output=True, check=True).stdout

    made = run_node(client_js / "scripts" / "generate.mjs", stdin=schemas)
    assert made.decode() == (client_js / "src" / "schema.ts").read_text(), MAKE


def test_the_page_s_copy_is_this_client(client_js: Path, tmp_path: Path) -> None:
    """Built again it has the same bytes, so those who run the gateway need no Node."""
    run_node(client_js / "scripts" / "bundle.mjs", tmp_path)

    for made in tmp_path.iterdir():
        assert made.read_bytes() == (VENDOR / made.name).read_bytes(), MAKE


def test_it_knows_every_event(client_js: Path) -> None:
    """An EventSource gives only the events that are asked for by name; one too few would look like a loss."""
    script = f"""
        import {{ EVENT_NAMES, TERMINAL_NAMES }} from {json.dumps((VENDOR / "stagebus-client.js").as_uri())};
        console.log(JSON.stringify([EVENT_NAMES, [...TERMINAL_NAMES]]));
    """
    names, terminal_names = json.loads(run_node("--input-type=module", "--eval", script))

    assert set(names) == set(EVENT_BY_NAME), MAKE
    assert set(terminal_names) == TERMINAL_NAMES
