import sys
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool, UnknownTools
from stagebus.shared.local.supervisor import DEMO_TOOL
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources import SourcedTool
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import ToolReply

CONTEXT = ToolContext(run_id="r", call_id="c")
MODULE = '''
from stagebus.worker.tools.function_tool import tool

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

    @staticmethod
    def add() -> None: ...

number = 3

def get_weather() -> str:
    return "my own"

ask_user = tool(name="ask_user")(lambda: "my own")
ask_user.__qualname__ = "ask_user"

def book_table() -> str:
    return "my own"

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
    assert registry.names() == ("get_weather", "ask_user", "add", "once", "find")
    assert (await registry.get("add").call('{"a": 2}', CONTEXT)).content == "3"


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
        ("mytools:add,mytools:Desk.add", "two tools are called 'add'"),
        ("mytools:every", "a generator cannot be a tool"),
    ],
)
@pytest.mark.usefixtures("mytools")
def test_bad_tool_stops_the_start_with_a_message(path, words):
    with pytest.raises(BadTool, match=words):
        ToolRegistry.from_settings(Settings(tools=path))


@pytest.mark.parametrize("name", ["get_weather", "ask_user"])
@pytest.mark.usefixtures("mytools")
async def test_tool_replaces_the_built_in_one_of_its_name(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        registry = ToolRegistry.from_settings(Settings(tools=f"mytools:add,mytools:{name}"))

    assert registry.names() == ("get_weather", "ask_user", "add")
    assert (await registry.get(name).call("", CONTEXT)).content == "my own"
    assert not registry.get(name).asks_user
    assert name in registry.default_names()
    assert [record.message for record in caplog.records] == [f"mytools.{name} replaces the built-in tool {name!r}"]
    await registry.aclose()


@pytest.mark.usefixtures("mytools")
async def test_tool_replaces_the_demo_s_of_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        registry = ToolRegistry.from_settings(Settings(tools=f"{DEMO_TOOL},mytools:book_table"))

    assert (await registry.get("book_table").call("", CONTEXT)).content == "my own"
    assert not registry.get("book_table").requires_approval
    assert "mytools.book_table replaces the built-in tool 'book_table'" in caplog.text
    await registry.aclose()


@pytest.mark.parametrize("name", ["with space", "dot.ted", "ümlaut", "x" * 65, "<lambda>"])
def test_name_that_providers_refuse_is_a_bad_tool(name):
    with pytest.raises(BadTool, match="letters, digits"):
        ToolRegistry([tool(name=name)(lambda: 1)], Settings())


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"concurrency": 0}, {"max_result_bytes": 255}])
def test_option_out_of_range_is_a_bad_tool(options):
    with pytest.raises(BadTool, match=f"'f': {next(iter(options))} is"):
        ToolRegistry([tool(name="f", **options)(lambda: 1)], Settings())


def test_lambda_needs_a_name():
    with pytest.raises(BadTool, match="set one with"):
        ToolRegistry([lambda: 1], Settings())


class Shelf:
    """A source whose tools a test puts there and takes away."""

    def __init__(self, *names: str) -> None:
        self.name = "shelf"
        self.names = names
        self.on_change = lambda: None
        self.is_closed = False

    def tools(self) -> list[SourcedTool]:
        return [
            SourcedTool(name, f"About {name}.", {"type": "object"}, self.call, may_be_task=name == "fetch")
            for name in self.names
        ]

    async def call(self, arguments: dict, context: ToolContext) -> ToolReply:
        return ToolReply(f"{arguments} " + "x" * 300, is_error=True)

    async def start(self) -> None: ...

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.fixture
async def shelved():
    """A registry with one function and a shelf."""
    shelf = Shelf("find", "fetch")
    registry = ToolRegistry([tool(name="own")(lambda: 1)], Settings(tool_result_max_bytes=256), sources=[shelf])
    yield registry, shelf
    await registry.aclose()
    assert shelf.is_closed


async def test_tools_of_a_source_are_there_once_it_started(shelved):
    registry, _ = shelved
    assert registry.names() == ("own",)
    await registry.start()

    assert registry.names() == ("own", "find", "fetch")
    assert registry.definitions(["find"])[0]["function"]["description"] == "About find."
    assert not registry.get("find").idempotent


async def test_only_tools_that_older_workers_cannot_have_are_described_as_deferred():
    """An older worker has the tool of a server, too, and waits for its task."""
    later = tool(name="later", deferred=True)(lambda: 1)
    registry = ToolRegistry([later], Settings(), sources=[Shelf("fetch")])
    await registry.start()

    assert {tool.name: tool.deferred for tool in registry.describe()} == {"later": True, "fetch": False}
    await registry.aclose()


async def test_sourced_tool_gets_an_object_and_its_reply_is_cut(shelved):
    registry, _ = shelved
    await registry.start()
    reply = await registry.get("find").call('{"a": [1]}', CONTEXT)

    assert reply.is_error
    assert reply.content.startswith("{'a': [1]} xxx")
    assert len(reply.content.encode()) <= 256
    assert "must be a JSON object" in (await registry.get("find").call("[]", CONTEXT)).content


async def test_snapshot_stays_as_tools_come_and_go(shelved):
    registry, shelf = shelved
    await registry.start()
    registry.changed.clear()
    before = registry.snapshot()
    shelf.names = ("fetch", "write")
    shelf.on_change()

    assert registry.changed.is_set()
    assert before.names() == ("own", "find", "fetch")
    assert registry.names() == ("own", "fetch", "write")
    assert [tool.name for tool in registry.describe()] == ["own", "fetch", "write"]


async def test_function_outranks_a_sourced_tool_of_its_name(shelved, caplog):
    registry, shelf = shelved
    shelf.names = ("own", "find")
    await registry.start()

    assert registry.names() == ("own", "find")
    assert (await registry.get("own").call("", CONTEXT)).content == "1"
    assert "tool 'own' is left out" in caplog.text


class Later:
    """A source that has given no tools yet."""

    name = "github"
    is_known = False

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None

    def tools(self) -> list[SourcedTool]:
        return []

    async def start(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "may_come"),
    [("github__merge", True), ("git*", True), ("*", True), ("book_tabel", False), ("gitlab__*", False)],
)
def test_approval_of_a_tool_that_can_never_come_stops_the_worker(name: str, may_come: bool) -> None:
    """With a misspelled name, the calls that should wait would run."""
    settings = Settings(approvals=(name,))
    with nullcontext() if may_come else pytest.raises(BadTool, match="is no tool"):
        ToolRegistry([], settings, sources=[Later()])
