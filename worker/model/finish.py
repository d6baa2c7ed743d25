"""Tracks how an answer ends: with a finish reason, with an error, or not at all; sans-IO.

The response reader and the delta merger share two rules. An error counts unless the answer was
complete before it, since some providers report a limit after the last token. An answer is complete
once it has a finish reason and the body ends or `[DONE]` follows: some servers send a reason with every chunk.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from stagebus.shared.model_text.chunk_text import FIRST_INDEX
from stagebus.worker.model.compat.error_shapes import ReportedError, error_in_chunk, parse_error

# Besides null, these also mean "not finished".
_NO_REASON: Final = ("", "null")


class FinishTracker:
    """Follows one stream chunk by chunk."""

    def __init__(self) -> None:
        self.error: ReportedError | None = None
        self._reason: str | None = None
        self._reason_of_others: str | None = None
        self._has_first = False

    @property
    def finish_reason(self) -> str | None:
        """The finish reason, or None until there is one."""
        return self._reason if self._has_first else self._reason_of_others

    def observe(self, chunk: Mapping[str, Any]) -> None:
        """Records the finish reason or the error of a chunk."""
        if ("error" in chunk or not chunk.get("choices")) and self.finish_reason is None:
            self.error = self.error or error_in_chunk(chunk)
        if not self._has_first:
            self._look_for_first(chunk)
        for choice in first_choice(chunk):
            if (error := choice.get("error")) and self.finish_reason is None:
                self.error = self.error or parse_error(error)
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason not in _NO_REASON:
                self._finish(reason)

    def _finish(self, reason: str) -> None:
        if reason == "error" and self.finish_reason is None:
            self.error = self.error or ReportedError("finish_reason is error", type="server_error")
        self._reason = reason

    def _look_for_first(self, chunk: Mapping[str, Any]) -> None:
        """Looks for choice 0. Until it is found, the reasons of other choices count: some servers count from one."""
        for choice in choices(chunk):
            reason = choice.get("finish_reason")
            if choice.get("index") in FIRST_INDEX:
                self._has_first = True
            elif isinstance(reason, str) and reason not in _NO_REASON:
                self._reason_of_others = reason


def choices(chunk: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Returns those of a chunk's choices that are objects."""
    items = chunk.get("choices")
    if not isinstance(items, list):
        return ()
    if len(items) == 1 and isinstance(items[0], dict):  # nearly every chunk
        return items
    return [choice for choice in items if isinstance(choice, dict)]


def first_choice(chunk: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Returns the entries for choice 0, usually one. A request never asks for further choices."""
    found = choices(chunk)
    if len(found) == 1 and found[0].get("index") in FIRST_INDEX:
        return found
    return [choice for choice in found if choice.get("index") in FIRST_INDEX]
