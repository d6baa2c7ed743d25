"""The messages for a missing model file or library."""

import sys
from pathlib import Path

import pytest

from stagebus.worker.demo import local_model


def test_chosen_model_file_is_used(tmp_path: Path) -> None:
    chosen = tmp_path / "model.gguf"
    chosen.touch()

    assert local_model.find_model(chosen) == chosen


@pytest.mark.parametrize("chosen", [Path("/nowhere/model.gguf"), None])
def test_missing_model_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, chosen: Path | None) -> None:
    monkeypatch.setattr(local_model, "MODEL_PACKAGE", "no_such_package")

    with pytest.raises(SystemExit, match=r"STAGEBUS_LOCAL_MODEL"):
        local_model.find_model(chosen)


def test_missing_library_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)

    with pytest.raises(SystemExit, match=r"stagebus\[local\]"):
        local_model.start_server(Path("model.gguf"), "127.0.0.1", 0)
