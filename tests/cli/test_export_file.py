import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from stagebus.cli.export_file import write_document

DOCUMENT = {"text": "é\u202ewith controls\u009b31m", "n": 1}
PARTS = [bytes([byte]) for byte in json.dumps(DOCUMENT, ensure_ascii=False).encode()]  # cuts characters apart


def test_document_is_written_with_visible_controls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_document(PARTS, tmp_path / "run.json")
    write_document(PARTS, None)

    written, printed = (tmp_path / "run.json").read_text(), capsys.readouterr().out
    assert written == printed.rstrip("\n")
    assert json.loads(written) == DOCUMENT
    assert written.isprintable()


def test_incomplete_document_leaves_the_older_file(tmp_path: Path) -> None:
    def cut() -> Iterator[bytes]:
        yield b"{"
        raise ConnectionResetError

    path = tmp_path / "run.json"
    path.write_text("older")
    with pytest.raises(typer.BadParameter):
        write_document(cut(), path)
    with pytest.raises(typer.BadParameter, match="cannot be written"):
        write_document(PARTS, tmp_path / "missing" / "run.json")

    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]
