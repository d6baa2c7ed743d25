"""`stagebus models check` uses the provider of a running `stagebus up`, unless its environment names one."""

import os
from pathlib import Path

import pytest

from stagebus.cli.running_up import adopt_running_model
from stagebus.shared.local.running_system import published

UP = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "demo", "STAGEBUS_MODEL": "demo", "X": "y"}


@pytest.mark.parametrize(
    ("own", "adopted"),
    [
        ({}, {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "STAGEBUS_MODEL": "demo"}),
        ({"OPENAI_BASE_URL": "https://mine.example/v1"}, {"OPENAI_BASE_URL": "https://mine.example/v1"}),
        ({"STAGEBUS_PROVIDERS": "mine.toml"}, {"STAGEBUS_PROVIDERS": "mine.toml"}),
    ],
)
def test_provider_of_a_running_system_is_adopted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: dict[str, str], adopted: dict[str, str]
) -> None:
    names = (*UP, "STAGEBUS_PROVIDERS")
    for name in names:
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the function sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("STAGEBUS_DATA_DIR", str(tmp_path))
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with published(tmp_path, UP):
        adopt_running_model()

    assert {name: os.environ[name] for name in names if name in os.environ and name != "OPENAI_API_KEY"} == adopted
