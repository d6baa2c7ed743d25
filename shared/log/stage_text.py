"""Follows what a model stage has said so far, event by event; no I/O."""

from typing import Final

import orjson

from stagebus.shared.domain.events import StageRestarted, ToolCompletionChunk
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.model_text.chunk_text import ChunkText, chunk_text, partial_answer

_CHUNK: Final = ToolCompletionChunk.event.encode()
_RESTARTED: Final = StageRestarted.event.encode()


class StageText:
    """The text of a stage's chunks that no restart has voided."""

    def __init__(self) -> None:
        self._texts: list[tuple[int, ChunkText]] = []

    def add(self, event: StoredEvent) -> None:
        """Adds the next event of the stage; most events have no text."""
        if event.event == _CHUNK:
            self._texts.append((event.event_id.sequence, chunk_text(orjson.loads(event.data)["tool_results"])))
        elif event.event == _RESTARTED:
            discard_from = StageRestarted.model_validate_json(event.data).discard_from
            while self._texts and self._texts[-1][0] >= discard_from:
                self._texts.pop()

    def answer(self) -> str:
        """Returns the answer, or the refusal, as far as the stage says it; without reasoning."""
        return partial_answer([text for _, text in self._texts])
