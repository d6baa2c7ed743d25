"""docs/tools.md: its tools work as it says, and it leaves out nothing that there is to say."""

import dataclasses
import importlib.util
import inspect
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.worker.tools.call_progress import PROGRESS_INTERVAL_S
from stagebus.worker.tools.function_tool import ToolOptions
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.tool_context import PROGRESS_MESSAGE_MAX_CHARS, ToolContext

PAGE = (Path(__file__).parents[3] / "docs" / "tools.md").read_text()
CONTEXT = ToolContext(run_id="R", call_id="C", tenant="acme", tool="the-tool")

# Each tool of the page: arguments that a model may write, and what it is told.
CALLS = {
    "count_words": ({"text": "one two  three"}, "3"),
    "plan_table": (
        {"guests": [{"name": "Ann"}, {"name": "Bob", "diet": "vegan"}], "stars": 5},
        '{"seats":2,"meal":"dinner","vegan":1,"note":null}',
    ),
    "opening_hours": ({"city": "Oslo"}, "opening_hours: there is no shop in Oslo; there are shops in Paris"),
    "order": ({"item": "pen", "number": 2}, "2 of pen will come tomorrow."),
    "count_pages": ({"books": ["Emma"]}, "400 pages, said the-tool in its call C"),
    "charge": ({"cents": 5}, '{"Idempotency-Key":"R:C","for":"acme","amount":"5"}'),
    "find_book": ({"title": "Emma", "year": None, "shelves": None}, "Emma (any year) is on one of 3 shelves."),
    "greet": ({"name": "Ann"}, "Hello, Ann!"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def load(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def functions(tmp_path: Path) -> list[Any]:
    """Every function of the page; each block is a module of its own."""
    modules = [load(tmp_path / f"page_{place}.py", source) for place, source in enumerate(blocks("python"))]
    return [f for m in modules for f in vars(m).values() if inspect.isfunction(f) and f.__module__ == m.__name__]


@pytest.fixture
async def registry(functions: list[Any]) -> AsyncIterator[ToolRegistry]:
    registry = ToolRegistry([f for f in functions if not f.__name__.startswith("test_")], Settings())
    yield registry
    await registry.aclose()


async def test_tools_of_the_page_do_what_it_says(registry: ToolRegistry) -> None:
    told = {name: await registry.get(name).call(json.dumps(CALLS[name][0]), CONTEXT) for name in registry.names()}

    assert {name: reply.content for name, reply in told.items()} == {name: words for name, (_, words) in CALLS.items()}
    assert [name for name, reply in told.items() if reply.is_error] == ["opening_hours"]


async def test_tools_page_shows_the_text_that_models_get(registry: ToolRegistry) -> None:
    shown, _ = blocks("json")
    (definition,) = registry.definitions(["count_words"])

    assert json.loads(shown) == definition
    assert "the one who asks included" in json.dumps(registry.definitions(["plan_table"]))


def test_tests_of_the_page_pass(functions: list[Any]) -> None:
    tests = [function for function in functions if function.__name__.startswith("test_")]

    assert tests
    for test in tests:
        test()


def test_page_leaves_out_no_option_and_nothing_of_the_context() -> None:
    options = {field.name for field in dataclasses.fields(ToolOptions)}
    context = {name for name in dir(ToolContext) if not name.startswith("_")} - {"report", "progress"}

    assert {name for name in options | context if f"`{name}`" not in PAGE} == set()
    assert f"every {PROGRESS_INTERVAL_S:g} s" in PAGE
    assert f"{PROGRESS_MESSAGE_MAX_CHARS} characters" in PAGE
