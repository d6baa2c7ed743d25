"""What the house's machines can check of its taste: who imports whom, sizes, scripts that declare themselves."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import RunFailed, StagebusError

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "worker", "shared")
MAY_IMPORT = {
    "gateway": {"gateway", "shared"},
    "worker": {"worker", "shared"},
    "shared": {"shared"},
    "stagebus": {"stagebus", "shared"},
    "clients/python/stagebus/tools.py": {"worker"},  # what people import of it who write tools
}
MAY_IMPORT_ARQ = {"shared/queue.py", "worker/queue.py", "worker/app.py"}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
NAMES_THAT_SAY_NOTHING = {"utils", "helpers", "base", "common", "misc"}
# A path that exists on one machine alone.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(work|home|Users)/\w")
IGNORED_FOLDERS = {"node_modules", "build", "dist"}
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".lua",
    ".js",
    ".css",
    ".html",
    ".mjs",
    ".ts",
    ".yml",
    ".json",
    ".conf",
    ".svg",
    "",
}

CLIENT = ROOT / "clients" / "python" / "stagebus"
MODULES = sorted(path for folder in (*(ROOT / p for p in PACKAGES), CLIENT) for path in folder.rglob("*.py"))
PAGE_FILES = sorted((ROOT / "gateway" / "static").glob("*.*s"))
CLIENT_FILES = sorted(path for path in (ROOT / "clients" / "js").glob("[st]*/*.*s") if path.name != "schema.ts")
SCRIPTS = sorted((ROOT / "shared" / "lua").glob("*.lua"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            yield str(node.module)


def text_files() -> Iterator[Path]:
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        is_ignored = parts == (".git",) or any(
            part in IGNORED_FOLDERS or part.startswith((".", "__")) for part in parts[:-1]
        )
        if path.is_file() and not is_ignored and path.suffix in TEXT_SUFFIXES:
            yield path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_meet_only_in_shared(path: Path) -> None:
    """gateway → shared ← worker, and the client's package ← its users' programs; it starts the others as processes."""
    package = path.relative_to(CLIENT.parent if path.is_relative_to(CLIENT) else ROOT).parts[0]
    ours = {module.split(".")[0] for module in imports_of(path)} & {*PACKAGES, "stagebus"}

    assert ours <= MAY_IMPORT[name_of(path) if name_of(path) in MAY_IMPORT else package]


def test_client_knows_nothing_of_its_command() -> None:
    importers = {name_of(path) for path in MODULES if any(m.startswith("stagebus.cli.") for m in imports_of(path))}

    assert importers <= {name_of(path) for path in (CLIENT / "cli").iterdir()}


def test_arq_has_few_doors() -> None:
    importers = {name_of(path) for path in MODULES if any(m.split(".")[0] == "arq" for m in imports_of(path))}

    assert importers <= MAY_IMPORT_ARQ


def test_streaming_routes_have_no_buffering_middleware() -> None:
    """Starlette's BaseHTTPMiddleware passes bodies through a queue of its own and outlives its clients."""
    assert not [name_of(path) for path in MODULES if "BaseHTTPMiddleware" in path.read_text()]


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS, *PAGE_FILES, *CLIENT_FILES], ids=name_of)
def test_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES_MAX
    assert path.stem not in NAMES_THAT_SAY_NOTHING


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    functions = (
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )

    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > FUNCTION_LINES_MAX]


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_declares_its_interface(path: Path) -> None:
    """Its name and its one sentence, each key and argument that it uses, and what it returns."""
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("--"))
    code = "\n".join(line for line in lines if not line.lstrip().startswith("--"))

    assert re.match(rf"-- {path.stem}: .+\.$", lines[0])
    assert re.search(r"^-- Returns .+", header, re.MULTILINE)
    for kind, number in set(re.findall(r"\b(KEYS|ARGV)\[(\d+)\]", code)):
        assert is_declared(kind, int(number), header), f"{kind}[{number}]"
    assert "'KEYS'" not in code
    assert "'SCAN'" not in code


def is_declared(kind: str, number: int, header: str) -> bool:
    """Whether `-- KEYS[3]` stands in the header, or an open end such as `-- KEYS[2..]`."""
    if re.search(rf"^-- {kind}\[{number}\] ", header, re.MULTILINE):
        return True
    return any(number >= int(first) for first in re.findall(rf"^-- {kind}\[(\d+)\.\.", header, re.MULTILINE))


def test_nothing_rests_on_one_machine() -> None:
    found = [name_of(path) for path in text_files() if path != Path(__file__) and MACHINE_PATH.search(path.read_text())]

    assert not found


def test_design_page_names_every_code_that_ends_a_run() -> None:
    """`Error.code` is documented there, as its schema says."""
    design = (ROOT / "docs" / "design.md").read_text()
    codes = {StagebusError.code} | {error.code for error in family(RunFailed)}

    assert {code for code in codes if f"| `{code}` |" not in design} == set()


def test_security_page_s_tests_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs" / "security.md").read_text())

    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).is_file()]


def family(error: type[StagebusError]) -> Iterator[type[StagebusError]]:
    yield error
    for child in error.__subclasses__():
        yield from family(child)
