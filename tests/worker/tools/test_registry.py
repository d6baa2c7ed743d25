import sys

import pytest

from shared.errors import BadTool, UnknownTools
from shared.settings import Settings
from worker.tools.functions import tool
from worker.tools.registry import ToolRegistry

MODULE = '''
from worker.tools.functions import tool

def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b

@tool(name="once", idempotent=False)
def do_once() -> str:
    return "done"

class Desk:
    @staticmethod
    def find(x: str) -> str:
        return x

number = 3

def get_weather() -> str:
    return "sunny"

def every():
    yield 1
'''


@pytest.fixture
def mytools(tmp_path, monkeypatch):
    """A module of someone's own."""
    (tmp_path / "mytools.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("raise ValueError('half a file')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mytools", None)


@pytest.fixture
async def registry(mytools):
    registry = ToolRegistry.from_settings(Settings(tools="mytools:add, mytools:do_once,mytools:Desk.find"))
    yield registry
    await registry.aclose()


async def test_built_in_and_own_tools_are_there(registry):
    assert registry.names() == ("get_weather", "add", "once", "find")
    assert (await registry.get("add").call('{"a": 2}')).content == "3"


async def test_definitions_are_what_a_model_is_offered(registry):
    (definition,) = registry.definitions(["add"])

    assert definition["type"] == "function"
    assert definition["function"]["name"] == "add"
    assert definition["function"]["description"] == "Add two numbers."
    assert definition["function"]["parameters"]["required"] == ["a"]


async def test_options_reach_the_tool(registry):
    assert registry.get("once").idempotent is False
    assert registry.get("add").idempotent is True


async def test_description_is_that_of_get_tools(registry):
    described = {tool.name: tool for tool in registry.describe()}

    assert set(described) == set(registry.names())
    assert "weather" in described["get_weather"].description
    assert described["get_weather"].parameters["required"] == ["city"]


async def test_unknown_name_is_an_error_that_names_it(registry):
    with pytest.raises(UnknownTools, match="nothing"):
        registry.get("nothing")
    with pytest.raises(UnknownTools, match="nothing"):
        registry.definitions(["add", "nothing"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("mytools", "not of the form module:function"),
        ("mytools:", "not of the form module:function"),
        (":add", "not of the form module:function"),
        ("no_such_module:f", "'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("broken:f", "'broken' cannot be imported: ValueError: half a file"),
        ("mytools:subtract", "'mytools' has no function 'subtract'"),
        ("mytools:number", "'mytools' has no function 'number'"),
        ("mytools:get_weather", "two tools are called 'get_weather'"),
        ("mytools:every", "a generator cannot be one"),
    ],
)
@pytest.mark.usefixtures("mytools")
def test_bad_tool_stops_the_start_with_a_message(path, words):
    with pytest.raises(BadTool, match=words):
        ToolRegistry.from_settings(Settings(tools=path))


@pytest.mark.parametrize("name", ["with space", "dot.ted", "ümlaut", "x" * 65, "<lambda>"])
def test_name_that_providers_refuse_is_a_bad_tool(name):
    with pytest.raises(BadTool, match="letters, digits"):
        ToolRegistry([tool(name=name)(lambda: 1)], Settings())


def test_lambda_needs_a_name():
    with pytest.raises(BadTool, match="set one with"):
        ToolRegistry([lambda: 1], Settings())
