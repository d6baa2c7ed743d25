"""The tools file: what it may say, and what is said of one that does not hold."""

import re
import sys
import tomllib

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources_file import BasicAuth, McpEntry, OpenApiEntry, SourcesFile
from tests.support.system import ROOT


@pytest.fixture
def load(tmp_path):
    """A registry out of a tools file's text; nothing in it is started."""

    def load(text: str) -> ToolRegistry:
        path = tmp_path / "tools.toml"
        path.write_text(text)
        return ToolRegistry.from_settings(Settings(tools_file=path))

    return load


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[mcp.files]\ncommand = "npx"\nargs = ["-y", "x"]\nenv = { A = "b", B = { env = "PATH" } }\ncwd = "/tmp"',
        '[mcp.a_b-c]\nurl = "https://mcp.example/mcp"\nheaders = { X-Key = { file = "/run/secrets/x" } }\ntimeout_s = 5',
    ],
)
def test_file_holds(load, text):
    assert load(text).names() == ("get_weather", "ask_user")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mcp", "not valid TOML"),
        ("[mcp.files]", "mcp.files: must have either a command or a url"),
        ('[mcp.f]\ncommand = "a"\nurl = "http://b"', "must have either a command or a url"),
        ('[mcp.f]\nurl = "ftp://b"', r"mcp.f.url: a URL must begin with http:// or https://"),
        ('[mcp.f]\nurl = "http://me:hunter2@b"', "must not contain a password"),
        ('[mcp.f]\nurl = "http://b"\nargs = ["x"]', "args, env and cwd need a command"),
        ('[mcp.f]\ncommand = "b"\nheaders = {A = "x"}', "headers need a url"),
        ('[mcp.f]\ncommand = "b"\nsurprise = 1', "mcp.f.surprise: unknown key; docs/tool-sources.md"),
        ('[mcp.a__b]\ncommand = "b"', "mcp.a__b"),
        ('[mcp."a.b"]\ncommand = "b"', "mcp.a.b"),
        ('[mcp.f]\ncommand = "b"\nenv = {"A=B" = "x"}', "mcp.f.env.A=B"),
        ('[mcp.f]\ncommand = "b"\ntimeout_s = 0', "mcp.f.timeout_s"),
        ('[mcp.f]\ncommand = "b"\nconcurrency = 0', "mcp.f.concurrency"),
        ('[mcp.f]\ncommand = "b"\nmax_result_bytes = 255', "mcp.f.max_result_bytes"),
        ('[mcp.f]\ncommand = "b"\nrequires_approval = "x"', "mcp.f.requires_approval"),
        ('[openapi.f]\ndocument = "a.yaml"', "openapi.f.operations: Field required"),
        ('[openapi.f]\ndocument = "a.yaml"\noperations = ["x"]', "a.yaml, named by the tools file, cannot be read"),
        ('[openapi.f]\ndocument = "http://u:hunter2@b"\noperations = ["x"]', "must not contain a password"),
        (
            '[openapi.f]\ndocument = "a"\noperations = ["x"]\nbearer = "x"\nbasic = {user="u",password="p"}',
            "both bearer and basic",
        ),
        ('[mcp.f]\ncommand = "b"\n[openapi.f]\ndocument = "a"\noperations = ["x"]', "mcp and openapi both define f"),
        ("[surprise.f]", "surprise: unknown key"),
    ],
)
def test_invalid_tools_file_stops_the_start_with_a_message(load, text, words):
    with pytest.raises(BadTool, match=words) as caught:
        load(text)
    assert "hunter2" not in str(caught.value)


def test_missing_tools_file_is_an_error(tmp_path):
    with pytest.raises(BadTool, match="named by STAGEBUS_TOOLS_FILE"):
        ToolRegistry.from_settings(Settings(tools_file=tmp_path / "nothing"))


def test_extra_that_is_missing_is_said(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "stagebus.worker.tools.mcp.mcp_source", None)

    with pytest.raises(BadTool, match=r"pip install 'stagebus\[mcp\]'"):
        load('[mcp.f]\ncommand = "b"')


@pytest.mark.parametrize(
    ("entry", "has_credentials"),
    [
        ({}, False),
        ({"idempotency_header": "Idempotency-Key"}, False),
        ({"bearer": "k"}, True),
        ({"basic": {"user": "u", "password": "p"}}, True),
        ({"headers": {"X-Key": "k"}}, True),
        ({"query": {"key": "k"}}, True),
        ({"fixed": {"shop": "ours"}}, True),
    ],
)
def test_values_of_the_operator_are_credentials(entry, has_credentials):
    entry = OpenApiEntry.model_validate({"document": "a.yaml", "operations": ["x"]} | entry)

    assert entry.has_credentials is has_credentials


def test_page_s_examples_hold_and_its_tables_name_every_key():
    page = (ROOT / "docs" / "tool-sources.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    files = [SourcesFile.model_validate(tomllib.loads(example)) for example in examples]
    keys = {key for entry in (McpEntry, OpenApiEntry, BasicAuth) for key in entry.model_fields}

    assert files[0].mcp.keys() | files[0].openapi.keys() == {"files", "search", "pets"}
    assert not [key for key in keys if not re.search(rf"^\|.*\b{key}\b", page, re.MULTILINE)]
