"""Architecture and style rules: imports between packages, unique names, sizes, docstrings, headers of Lua scripts."""

import ast
import glob
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from stagebus.shared.errors import RunFailed, StagebusError

ROOT = Path(__file__).parent.parent
# The layers from top to bottom. A package imports from lower layers and from itself, never from another package of its
# own layer.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("stagebus.cli",),
    ("stagebus.client", "stagebus.tools"),
    ("stagebus.gateway.__main__",),
    ("stagebus.gateway.app",),
    ("stagebus.gateway.server", "stagebus.gateway.endpoint_table"),
    ("stagebus.gateway.views",),
    ("stagebus.gateway.api",),
    ("stagebus.gateway.context",),
    ("stagebus.gateway.gateway_metrics", "stagebus.gateway.stream_admission"),
    ("stagebus.gateway.auth", "stagebus.gateway.streaming", "stagebus.gateway.tenant_limiter"),
    ("stagebus.worker.__main__", "stagebus.events"),
    ("stagebus.worker.worker_app",),
    ("stagebus.worker.webhooks",),
    ("stagebus.worker.execution",),
    ("stagebus.worker.stages", "stagebus.worker.demo"),
    ("stagebus.worker.model", "stagebus.worker.tools", "stagebus.worker.worker_metrics"),
    ("stagebus.shared.local",),
    ("stagebus.shared.store",),
    ("stagebus.shared.log",),
    ("stagebus.shared.storage",),
    ("stagebus.shared.config",),
    ("stagebus.shared.domain",),
    ("stagebus.shared.position_errors", "stagebus.shared.thread_errors", "stagebus.shared.webhook_errors"),
    ("stagebus.shared.access_errors", "stagebus.shared.call_errors"),
    ("stagebus.shared.model_text", "stagebus.shared.observability"),
    ("stagebus.shared.errors",),
    ("stagebus.shared.json_schema", "stagebus.shared.runtime"),
)
# Imports that the layers alone would allow. The command line starts processes; it does not import them.
NEVER_IMPORTS = {
    "stagebus.cli": ("stagebus.gateway", "stagebus.worker"),
    "stagebus.client": ("stagebus.gateway",),
    "stagebus.tools": ("stagebus.gateway",),
    "stagebus.gateway": ("stagebus.worker", "stagebus.events"),
}
# The only modules that may import these libraries.
IMPORTERS = {
    "arq": {"stagebus.worker.execution.leased_worker"},
    "re2": {"stagebus.shared.json_schema"},
    "redis": {"stagebus.shared.storage"},
    "uvicorn": {"stagebus.gateway.server", "stagebus.worker.demo"},
    "opentelemetry": {"stagebus.shared.observability.spans", "stagebus.shared.observability.otel_export"},
    "prometheus_client": {"stagebus.shared.observability", "stagebus.gateway", "stagebus.worker"},
}
# The domain has no I/O: it may import these and nothing else.
DOMAIN_MAY_IMPORT = {
    *("binascii", "collections", "dataclasses", "enum", "functools", "hashlib", "itertools", "re", "secrets", "typing"),
    *("orjson", "pydantic", "ulid"),
    *("stagebus.shared.domain", "stagebus.shared.errors", "stagebus.shared.thread_errors"),
    "stagebus.shared.observability.trace",
}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
VAGUE_FILE_NAMES = {"utils", "helpers", "base", "common", "misc"}
# Entry points of the packages; every other file name occurs once.
ENTRY_FILE_NAMES = {"__init__.py", "__main__.py"}
# Files that share a name, with the reason.
SHARED_FILE_NAMES = {
    "events.py": "`stagebus.events` exports the events of stagebus.shared.domain.events",
}
# Public classes that share a name, with the reason.
SHARED_CLASS_NAMES = dict.fromkeys(
    ("BadCursor", "Forbidden", "InvalidRequest", "RateLimited", "RunFailed", "Unauthenticated"),
    "the client raises its own class for the server's error code of the same name",
) | {"Thread": "the client's handle of a thread, and a thread as it is stored"}
# A docstring says what its function does ("Returns…"), or names the thing; it does not begin with a question.
QUESTION = re.compile(r"(What|Whether|Who|Whom|Whose|Where|Whoever)\b")
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
# glob follows the symbolic links; pathlib's rglob does not.
MODULES = sorted(Path(path) for path in glob.glob(f"{SOURCES}/**/*.py", recursive=True))  # noqa: PTH207
PAGE_FILES = sorted((ROOT / "gateway" / "static").glob("*.*s"))
CLIENT_FILES = sorted(path for path in (ROOT / "clients" / "js").glob("[st]*/*.*s") if path.name != "schema.ts")
SCRIPTS = sorted((ROOT / "shared" / "storage" / "lua").glob("*.lua"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def repository_files() -> Iterator[Path]:
    """Yields the files of the repository once, by their paths without links. Does not enter ignored folders."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in IGNORED_FOLDERS and not name.startswith((".", "__"))]
        yield from (Path(folder, name) for name in names if name != ".git")


FILES = sorted(repository_files())
PYTHON_FILES = [path for path in FILES if path.suffix == ".py"]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            yield str(node.module)


def text_files() -> Iterator[Path]:
    return (path for path in FILES if path.suffix in TEXT_SUFFIXES)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCES).with_suffix("").parts)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer_of(module: str) -> tuple[int, str]:
    """Returns the layer's number, counted from the bottom, and the package in it."""
    fits = [
        (len(LAYERS) - number, package)
        for number, layer in enumerate(LAYERS)
        for package in layer
        if is_in(module, package)
    ]
    assert fits, f"{module} is in no package of LAYERS: add it there"
    return max(fits, key=lambda fit: len(fit[1]))


def test_packages_import_only_from_lower_layers() -> None:
    """One test for all files, here and below: a test for each costs more time than its check."""
    found = [wrong for path in MODULES if path.stem != "__init__" for wrong in _wrong_imports(path)]

    assert found == []


def _wrong_imports(path: Path) -> Iterator[str]:
    layer, package = layer_of(module_of(path))
    forbidden = [never for top, nevers in NEVER_IMPORTS.items() if is_in(package, top) for never in nevers]
    for imported in imports_of(path):
        if is_in(imported, "stagebus"):
            other_layer, other = layer_of(imported)
            if other != package and other_layer >= layer:
                yield f"{name_of(path)} imports {imported}, which is not below {package}"
            if any(is_in(imported, never) for never in forbidden):
                yield f"{name_of(path)} must not import {imported}"


def test_domain_has_no_io() -> None:
    paths = [path for path in MODULES if is_in(module_of(path), "stagebus.shared.domain")]
    found = [
        f"{name_of(path)} imports {name}"
        for path in paths
        for name in imports_of(path)
        if not any(is_in(name, allowed) for allowed in DOMAIN_MAY_IMPORT)
    ]

    assert paths
    assert found == []


@pytest.mark.parametrize("library", IMPORTERS)
def test_library_is_imported_only_by_its_importers(library: str) -> None:
    importers = {module_of(path) for path in MODULES if any(is_in(name, library) for name in imports_of(path))}

    assert importers, f"no module imports {library}: remove it from IMPORTERS"
    assert not [module for module in importers if not any(is_in(module, package) for package in IMPORTERS[library])]


def test_package_is_imported_by_its_whole_name() -> None:
    """The repository is on the tests' path, where `import shared` would load a second copy of every module."""
    tops = {path.name for path in (SOURCES / "stagebus").iterdir() if path.is_symlink()}

    assert tops == {"gateway", "worker", "shared"}
    assert not [name_of(path) for path in PYTHON_FILES if {name.split(".")[0] for name in imports_of(path)} & tops]


def test_file_names_are_unique() -> None:
    """Tests are named after the files that they test, so their folders may repeat a name."""
    paths = defaultdict(list)
    for path in PYTHON_FILES:
        if "tests" not in path.relative_to(ROOT).parts and path.name not in ENTRY_FILE_NAMES:
            paths[path.name].append(name_of(path))

    assert {name: same for name, same in paths.items() if len(same) > 1 and name not in SHARED_FILE_NAMES} == {}
    assert all(len(paths[name]) > 1 for name in SHARED_FILE_NAMES), "an exception that is no longer needed"


def test_public_class_names_are_unique() -> None:
    modules = defaultdict(list)
    for path in MODULES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(module_of(path))

    assert {name: same for name, same in modules.items() if len(same) > 1 and name not in SHARED_CLASS_NAMES} == {}
    assert all(len(modules[name]) > 1 for name in SHARED_CLASS_NAMES), "an exception that is no longer needed"


def test_docstrings_do_not_begin_with_a_question_word() -> None:
    found = [
        f"{name_of(path)}: {docstring.splitlines()[0]}"
        for path in PYTHON_FILES
        for node in ast.walk(tree_of(path))
        if (is_function(node) or isinstance(node, ast.Module | ast.ClassDef))
        and (docstring := ast.get_docstring(node))
        and QUESTION.match(docstring)
    ]

    assert found == []


def test_test_names_name_a_feature() -> None:
    """A name that begins with a question word is not found by a search for the feature."""
    found = [
        f"{name_of(path)}: {node.name}"
        for path in PYTHON_FILES
        for node in ast.walk(tree_of(path))
        if is_function(node) and re.match(r"test_(what|whether|who|whom|whose|where|whoever)_", node.name)
    ]

    assert found == []


def test_streaming_routes_have_no_buffering_middleware() -> None:
    """Starlette's BaseHTTPMiddleware passes bodies through its own queue and runs on after the client has gone."""
    assert not [name_of(path) for path in MODULES if "BaseHTTPMiddleware" in path.read_text()]


def test_files_are_short_and_have_telling_names() -> None:
    paths = [*MODULES, *SCRIPTS, *PAGE_FILES, *CLIENT_FILES]

    assert [name_of(path) for path in paths if len(path.read_text().splitlines()) > FILE_LINES_MAX] == []
    assert [name_of(path) for path in paths if path.stem in VAGUE_FILE_NAMES] == []


def test_functions_are_short() -> None:
    found = [
        f"{name_of(path)}: {node.name}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if is_function(node) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]

    assert found == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_lua_script_declares_its_interface(path: Path) -> None:
    """The header has the name with one sentence, every key and argument that the code uses, and the return value."""
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("--"))
    code = "\n".join(line for line in lines if not line.lstrip().startswith("--"))

    assert re.match(rf"-- {path.stem}: .+\.$", lines[0])
    assert re.search(r"^-- Returns .+", header, re.MULTILINE)
    used = set(re.findall(r"\b(KEYS|ARGV)\[(\d+)\]", code)) | set(re.findall(r"unpack\((KEYS|ARGV), (\d+)", code))
    for kind, number in used:
        assert is_declared(kind, int(number), header), f"the header does not declare {kind}[{number}]"
    assert "'KEYS'" not in code, "the command KEYS reads the whole database"
    assert "'SCAN'" not in code, "the command SCAN reads the whole database"


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_names_its_keys_and_arguments_first(path: Path) -> None:
    """The code begins with locals for all keys and arguments and then uses only those names."""
    code = [line for line in path.read_text().splitlines() if line and not line.startswith("--")]
    names = list(itertools.takewhile(lambda line: re.match(r"local [\w, ]+ = .*\b(KEYS|ARGV)\b", line), code))

    assert names
    assert not [line for line in code[len(names) :] if re.search(r"\b(KEYS|ARGV)\b", line)]


def is_declared(kind: str, number: int, header: str) -> bool:
    """Returns whether the header has a line such as `-- KEYS[3]`, or an open range such as `-- KEYS[2..]`."""
    if re.search(rf"^-- {kind}\[{number}\] ", header, re.MULTILINE):
        return True
    return any(number >= int(first) for first in re.findall(rf"^-- {kind}\[(\d+)\.\.", header, re.MULTILINE))


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [name_of(path) for path in text_files() if path != Path(__file__) and MACHINE_PATH.search(path.read_text())]

    assert found == []


def test_design_page_names_every_code_that_ends_a_run() -> None:
    """The description of `Error.code` refers readers to that page."""
    design = (ROOT / "docs" / "design.md").read_text()
    codes = {StagebusError.code} | {error.code for error in subclasses_of(RunFailed)}

    assert {code for code in codes if f"| `{code}` |" not in design} == set()


def test_tests_named_in_the_documentation_exist() -> None:
    """These two pages name a test for each promise."""
    pages = {page: (ROOT / "docs" / page).read_text() for page in ("guarantees.md", "security.md")}
    tests = [path for path in PYTHON_FILES if path.is_relative_to(ROOT / "tests")]
    known = {path.stem for path in tests}
    known |= {node.name for path in tests for node in ast.walk(tree_of(path)) if is_function(node)}
    paths = {path for text in pages.values() for path in re.findall(r"`(tests/[\w/]+\.py)", text)}

    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).is_file()] == []
    named = {(page, name) for page, text in pages.items() for name in re.findall(r"\btest_\w+", text)}
    assert len(named) > 30
    assert [entry for entry in sorted(named) if entry[1] not in known] == []


def subclasses_of(error: type[StagebusError]) -> Iterator[type[StagebusError]]:
    """Yields the class itself and all its subclasses."""
    yield error
    for child in error.__subclasses__():
        yield from subclasses_of(child)
