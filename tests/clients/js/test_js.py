"""Runs the JavaScript client's own tests, and checks that its generated files are up to date."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from stagebus.shared.domain.events import EVENT_BY_NAME, TERMINAL_NAMES
from tests.clients.js.conftest import JS, run_node

VENDOR = JS.parent.parent / "gateway" / "static" / "vendor"
# The type of an event's data follows from its name.
USER = """
import { answerStage, emptyRun, reduce, Stagebus, type RunState } from "@stagebus/client";
import { useRun } from "@stagebus/client/react";

const run = await new Stagebus({ apiKey: async () => "key" }).runs.create({ user_prompt: "Hi", max_rounds: 2 });
for await (const event of run) {
  if (event.name === "tool_call") event.data.arguments.length;
  if (event.name === "gap") event.data.earliest.length;
  // @ts-expect-error: no other event has arguments
  if (event.name === "done") event.data.arguments;
}
let state: RunState = emptyRun();
for await (const update of run.updates({ signal: AbortSignal.timeout(1) })) state = reduce(state, update);
const text: string | undefined = answerStage(state)?.text;
// @ts-expect-error: a state is never changed
state.status = "queued";
// @ts-expect-error: no such field
await new Stagebus().runs.create({ prompt: "Hi" });
const shown: RunState = useRun(run).state;
"""
MAKE = "run `make client`"


@pytest.mark.parametrize("name", sorted(path.name for path in (JS / "test").glob("*.test.mjs")))
def test_node_tests_pass(client_js: Path, name: str) -> None:
    run_node("--test", client_js / "test" / name)


def test_generated_types_match_the_gateway_s_schemas(client_js: Path) -> None:
    schemas = subprocess.run([sys.executable, JS / "scripts" / "schemas.py"], capture_output=True, check=True).stdout

    made = run_node(client_js / "scripts" / "generate.mjs", stdin=schemas)
    assert made.decode() == (client_js / "src" / "schema.ts").read_text(), MAKE


def test_bundle_of_the_page_is_up_to_date(client_js: Path, tmp_path: Path) -> None:
    """The bundle is committed, so that running a gateway does not need Node."""
    run_node(client_js / "scripts" / "bundle.mjs", tmp_path)

    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {path.relative_to(VENDOR): path.read_bytes() for path in VENDOR.rglob("*") if path.is_file()}, MAKE


def test_npm_package_is_complete(client_js: Path, tmp_path: Path) -> None:
    """The packed files can be imported and type-checked outside this repository."""
    pack = ["npm", "pack", "--json", "--silent", "--ignore-scripts", "--pack-destination", tmp_path]
    (packed,) = json.loads(subprocess.run(pack, cwd=client_js, capture_output=True, check=True).stdout)
    names = {file["path"] for file in packed["files"]}
    assert {"package.json", "README.md", "LICENSE", "examples/eventsource.html"} <= names
    assert {name.split("/")[0] for name in names} == {"package.json", "README.md", "LICENSE", "examples", "dist"}
    assert {Path(name).suffix for name in names if name.startswith("dist/")} - {""} == {".js", ".ts", ".map"}

    modules = tmp_path / "node_modules"
    (modules / "@stagebus").mkdir(parents=True)
    for name in ("eventsource-parser", "partial-json", "react", "@types"):
        (modules / name).symlink_to(client_js / "node_modules" / name)
    with tarfile.open(tmp_path / packed["filename"]) as tarball:
        tarball.extractall(modules, filter="data")
    (modules / "package").rename(modules / "@stagebus" / "client")
    (tmp_path / "user.mts").write_text(USER)
    command = ["--ignoreConfig", "--noEmit", "--strict", "--target", "es2023", "--module", "nodenext", "--types"]
    run_node(client_js / "node_modules" / "typescript" / "bin" / "tsc", *command, "", tmp_path / "user.mts")
    script = (
        'for (const name of ["", "/react"]) console.log(Object.keys(await import(`@stagebus/client${name}`)).length)'
    )
    assert int(run_node("--input-type=module", "--eval", script, cwd=tmp_path).split()[0]) > 10


def test_client_lists_every_event_name(client_js: Path) -> None:
    """An EventSource delivers only events with a listener; a missing name would look like a lost event."""
    script = f"""
        import {{ EVENT_NAMES, TERMINAL_NAMES }} from {json.dumps((VENDOR / "stagebus-client.js").as_uri())};
        console.log(JSON.stringify([EVENT_NAMES, [...TERMINAL_NAMES]]));
    """
    names, terminal_names = json.loads(run_node("--input-type=module", "--eval", script))

    assert set(names) == set(EVENT_BY_NAME), MAKE
    assert set(terminal_names) == TERMINAL_NAMES
