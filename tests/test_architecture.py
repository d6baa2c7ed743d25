"""What the house's machines can check of its taste: who imports whom, sizes, scripts that declare themselves."""

import ast
import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagebus.shared.errors import RunFailed, StagebusError

ROOT = Path(__file__).parent.parent
# The rooms from the top floor down. A room imports from floors below its own and from itself, and never from another
# room of its floor, so each row says what could be lifted out whole.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("stagebus.cli",),
    ("stagebus.client", "stagebus.tools"),
    ("stagebus.gateway.__main__",),
    ("stagebus.gateway.app",),
    ("stagebus.gateway.server",),
    ("stagebus.gateway.api",),
    ("stagebus.gateway.context",),
    ("stagebus.gateway.gateway_metrics", "stagebus.gateway.stream_admission"),
    ("stagebus.gateway.auth", "stagebus.gateway.streaming", "stagebus.gateway.tenant_limiter"),
    ("stagebus.worker", "stagebus.events"),
    ("stagebus.shared.local",),
    ("stagebus.shared.store",),
    ("stagebus.shared.log",),
    ("stagebus.shared.storage",),
    ("stagebus.shared.config",),
    ("stagebus.shared.domain",),
    ("stagebus.shared.access_errors",),
    ("stagebus.shared.errors", "stagebus.shared.observability", "stagebus.shared.runtime"),
)
# Beyond their floors: processes are started, not imported.
NEVER_IMPORTS = {
    "stagebus.cli": ("stagebus.gateway", "stagebus.worker"),
    "stagebus.client": ("stagebus.gateway",),
    "stagebus.tools": ("stagebus.gateway",),
    "stagebus.gateway": ("stagebus.worker", "stagebus.events"),
}
# A library with a room of its own: no other module may import it.
MAY_IMPORT = {
    "arq": {"stagebus.worker.execution.leased_worker"},
    "redis": {"stagebus.shared.storage"},
    "uvicorn": {"stagebus.gateway.server", "stagebus.worker.demo"},
    "prometheus_client": {"stagebus.shared.observability", "stagebus.gateway", "stagebus.worker"},
}
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

SOURCES = ROOT / "src"
# glob follows the links; pathlib's rglob does not.
MODULES = sorted(Path(path) for path in glob.glob(f"{SOURCES}/**/*.py", recursive=True))  # noqa: PTH207
PAGE_FILES = sorted((ROOT / "gateway" / "static").glob("*.*s"))
CLIENT_FILES = sorted(path for path in (ROOT / "clients" / "js").glob("[st]*/*.*s") if path.name != "schema.ts")
SCRIPTS = sorted((ROOT / "shared" / "storage" / "lua").glob("*.lua"))


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


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCES).with_suffix("").parts)


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def floor_of(module: str) -> tuple[int, str]:
    """The floor's number from the ground up, and the room on it."""
    fits = [
        (len(FLOORS) - number, room) for number, floor in enumerate(FLOORS) for room in floor if is_in(module, room)
    ]
    assert fits, f"{module} is in no room: give it one in FLOORS"
    return max(fits, key=lambda fit: len(fit[1]))


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=name_of)
def test_imports_run_down_the_floors(path: Path) -> None:
    floor, room = floor_of(module_of(path))
    forbidden = [never for top, nevers in NEVER_IMPORTS.items() if is_in(room, top) for never in nevers]

    for imported in imports_of(path):
        if is_in(imported, "stagebus"):
            below, other = floor_of(imported)
            assert other == room or below < floor, f"{room} imports {imported}"
            assert not any(is_in(imported, never) for never in forbidden), f"{room} imports {imported}"


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_library_has_one_door(library: str) -> None:
    importers = {module_of(path) for path in MODULES if any(is_in(name, library) for name in imports_of(path))}

    assert importers
    assert not [module for module in importers if not any(is_in(module, room) for room in MAY_IMPORT[library])]


def test_the_package_is_imported_by_its_whole_name() -> None:
    """The tests' path has the repository on it, where `import shared` would load a second copy of everything."""
    tops = {path.name for path in (SOURCES / "stagebus").iterdir() if path.is_symlink()}
    ours = [
        *MODULES,
        *(path for folder in ("tests", "benchmarks", "docs", "clients") for path in (ROOT / folder).rglob("*.py")),
    ]

    assert tops == {"gateway", "worker", "shared"}
    assert not [name_of(path) for path in ours if {name.split(".")[0] for name in imports_of(path)} & tops]


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
    used = set(re.findall(r"\b(KEYS|ARGV)\[(\d+)\]", code)) | set(re.findall(r"unpack\((KEYS|ARGV), (\d+)", code))
    for kind, number in used:
        assert is_declared(kind, int(number), header), f"{kind}[{number}]"
    assert "'KEYS'" not in code
    assert "'SCAN'" not in code


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_names_its_keys_and_arguments_first(path: Path) -> None:
    """The code begins with locals for all keys and arguments and then uses only those names."""
    code = [line for line in path.read_text().splitlines() if line and not line.startswith("--")]
    names = list(itertools.takewhile(lambda line: re.match(r"local [\w, ]+ = .*\b(KEYS|ARGV)\b", line), code))

    assert names
    assert not [line for line in code[len(names) :] if re.search(r"\b(KEYS|ARGV)\b", line)]


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
