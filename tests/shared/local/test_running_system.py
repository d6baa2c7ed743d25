"""Other commands find a running `stagebus up` by its data folder, and never one that has ended."""

import json
import os
from pathlib import Path

import pytest

from stagebus.shared.local.running_system import FILE, find_environment, published

ENV = {"STAGEBUS_REDIS_URL": "redis://127.0.0.1:1/0"}


def test_environment_is_found_while_the_system_runs(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    assert find_environment(data_dir) == {}
    with published(data_dir, ENV):
        assert find_environment(data_dir) == find_environment(data_dir) == ENV
        with published(data_dir, {"STAGEBUS_REDIS_URL": "another"}):
            assert find_environment(data_dir) == ENV, "the first one stays"
        assert find_environment(data_dir) == ENV
        assert (data_dir / FILE).stat().st_mode & 0o077 == 0

    assert not (data_dir / FILE).exists()


def test_file_of_a_killed_system_is_not_used(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(ENV))

    assert find_environment(tmp_path) == {}
    with published(tmp_path, ENV | {"X": "y"}):
        assert find_environment(tmp_path)["X"] == "y"


def test_folder_that_is_not_writable_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with published(tmp_path / "file", ENV):
        assert find_environment(tmp_path / "file") == {}


def test_file_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp, say, it could name a provider that would then get this user's key."""
    with published(tmp_path, ENV):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

        assert find_environment(tmp_path) == {}
