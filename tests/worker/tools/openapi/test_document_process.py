import sys
from pathlib import Path

import pytest

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.openapi import document_process
from stagebus.worker.tools.openapi.document_process import DocumentReading

QUIRKS = (Path(__file__).parent / "quirks.yaml").read_bytes()
READING = DocumentReading(["getCharge", "switch"], "http://127.0.0.1/v1", "", {"limit": 5, "off": 1}, 2**16)


async def test_child_reads_what_this_process_would_read():
    assert await READING.read_in_child(QUIRKS) == READING.read(QUIRKS)


async def test_child_gets_no_secret_and_its_failure_is_a_bad_document(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\ncat > /dev/null\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("STAGEBUS_REDIS_URL", "redis://:secret@127.0.0.1")

    with pytest.raises(BadTool, match="the document's reader failed with exit code 3"):
        await READING.read_in_child(QUIRKS)
    assert "PYTHONPATH" in (tmp_path / "seen").read_text()
    assert "secret" not in (tmp_path / "seen").read_text()


async def test_child_that_takes_too_long_is_killed(monkeypatch):
    monkeypatch.setattr(document_process, "READ_MAX_S", 0.001)

    with pytest.raises(BadTool, match=r"was not read within 0\.001 s"):
        await READING.read_in_child(QUIRKS)
