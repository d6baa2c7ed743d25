"""The identity of a worker process, and what it checks before it starts."""

from pathlib import Path

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadProviders, BadTool, StagebusError
from stagebus.worker.worker_app import WorkerApp


async def test_restarted_worker_has_another_name(settings: Settings) -> None:
    """A container keeps its host name and process id, and a claim under the same name would not count as a retry."""
    settings = settings.model_copy(update={"openai_base_url": "http://127.0.0.1:1/v1"})

    assert WorkerApp(settings).name != WorkerApp(settings).name


PROVIDERS = """
[providers.one]
base_url = "https://one.example/v1"
key = { env = "STAGEBUS_TEST_KEY" }
models = ["a"]

[providers.two]
base_url = "https://two.example/v1"
headers = { X-Team = { env = "STAGEBUS_TEST_TEAM" }, X-Other = "text" }
models = ["b"]
"""
TOOLS = """
[openapi.shop]
document = "https://shop.example/openapi.json"
operations = ["GET /pets"]
query = { key = { env = "STAGEBUS_TEST_KEY" } }
"""


@pytest.mark.parametrize(
    ("setting", "content", "error", "said"),
    [
        ("providers", PROVIDERS, BadProviders, ["one.key: the environment variable STAGEBUS_TEST_KEY is empty or not set",
                                                "two.headers.X-Team: the environment variable STAGEBUS_TEST_TEAM is"]),
        ("tools_file", TOOLS, BadTool, ["shop.query.key: the environment variable STAGEBUS_TEST_KEY is empty or not set"]),
    ],
)  # fmt: skip
async def test_unset_variable_of_a_configuration_file_stops_the_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    setting: str, content: str, error: type[StagebusError], said: list[str],
) -> None:  # fmt: skip
    """All of them are named at once. A gateway needs none of them."""
    path = tmp_path / "file.toml"
    path.write_text(content)
    settings = settings.model_copy(update={"openai_base_url": "http://127.0.0.1:1/v1", setting: path, "model": "a"})
    monkeypatch.setenv("STAGEBUS_TEST_KEY", "")
    with pytest.raises(error) as failure:
        WorkerApp(settings)

    assert [text for text in said if text not in str(failure.value)] == []
    monkeypatch.setenv("STAGEBUS_TEST_KEY", "x")
    monkeypatch.setenv("STAGEBUS_TEST_TEAM", "y")
    assert WorkerApp(settings).name
