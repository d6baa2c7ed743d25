"""How an answer ends: with a reason, with an error, or not at all; sans-IO.

One rule for all who read a provider's stream: an error counts unless the answer was
complete before it (some providers report a limit after the last token), and an answer
is complete once it gave a finish reason, whether `[DONE]` follows or not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from stagebus.worker.model.provider_errors import ReportedError, error_in_chunk, parse_error

# What stands for "not yet" beside null itself.
_NO_REASON: Final = ("", "null")
_FIRST: Final = (0, None, "0", "")


class FinishTracker:
    """Follows a stream chunk by chunk."""

    def __init__(self) -> None:
        self.error: ReportedError | None = None
        self._reason: str | None = None
        self._reason_of_others: str | None = None
        self._has_first = False

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended; None as long as it has not."""
        return self._reason if self._has_first else self._reason_of_others

    def see(self, chunk: Mapping[str, Any]) -> None:
        """Take note of a chunk's finish reason or error."""
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
        """Take note of choice 0, and of how others ended as long as there is none: some servers count from one."""
        for choice in choices(chunk):
            reason = choice.get("finish_reason")
            if choice.get("index") in _FIRST:
                self._has_first = True
            elif isinstance(reason, str) and reason not in _NO_REASON:
                self._reason_of_others = reason


def choices(chunk: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """A chunk's choices, as far as they are objects."""
    pieces = chunk.get("choices")
    if not isinstance(pieces, list):
        return ()
    if len(pieces) == 1 and isinstance(pieces[0], dict):  # nearly every chunk
        return pieces
    return [choice for choice in pieces if isinstance(choice, dict)]


def first_choice(chunk: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """What a chunk holds of choice 0, usually one piece. Others were never asked for."""
    found = choices(chunk)
    if len(found) == 1 and found[0].get("index") in _FIRST:
        return found
    return [choice for choice in found if choice.get("index") in _FIRST]
