"""Every recording of a real provider merges to the expected answer, however it is split."""

import json
import random
from typing import Any

import pytest

from stagebus.worker.model.chat_chunks import ChunkDecoder
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from tests.support.recorded_inputs import CORPUS

MANIFEST = CORPUS / "manifest.jsonl"
RECORDINGS = [json.loads(line) for line in MANIFEST.read_text().splitlines()] if MANIFEST.exists() else []

pytestmark = pytest.mark.skipif(not RECORDINGS, reason=f"no recordings in {CORPUS}")


def merge(pieces: list[bytes]) -> MergedAnswer:
    decoder, merger = ChunkDecoder(), DeltaMerger(tool_names=("get_weather",))
    for chunk in [chunk for piece in pieces for chunk in decoder.feed(piece)] + decoder.finish():
        merger.add(chunk)
    return merger.result()


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording["file"])
def test_recording_merges_as_expected(recording: dict[str, Any]) -> None:
    expected = recording["expected"]
    merged = merge([(CORPUS / recording["file"]).read_bytes()])

    calls = [call.model_dump(exclude_none=True) for call in merged.tool_calls]
    assert calls == expected["tool_calls"]
    assert merged.finish_reason == expected["finish_reason"]
    assert merged.usage == expected["usage"]
    assert (merged.error is not None) == (expected["ends"] == "error")
    if expected["text"] is not None:
        assert merged.text == expected["text"]
        assert len(merged.reasoning) == expected["reasoning_chars"]


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording["file"])
def test_recording_split_anywhere_merges_the_same(recording: dict[str, Any]) -> None:
    """Split at every byte if the recording is short, else at some bytes."""
    raw = (CORPUS / recording["file"]).read_bytes()
    whole = merge([raw])
    cuts = range(len(raw)) if len(raw) <= 4000 else sorted(random.Random(1).sample(range(len(raw)), 40))

    assert merge([raw[i : i + 1] for i in range(len(raw))]) == whole
    assert merge([raw.replace(b"\n", b"\r\n")]) == whole
    for cut in cuts:
        assert merge([raw[:cut], raw[cut:]]) == whole
