"""Parts of a response in the format of the Responses API: text that is being written, and the usage."""

from io import StringIO
from typing import Final

from stagebus.gateway.streaming.fold import FrameTemplate, Json, encode_event

IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"


class OpenText:
    """A message or a reasoning item that is being written."""

    __slots__ = ("delta", "index", "is_reasoning", "item_id", "text")

    def __init__(self, index: int, item_id: str, *, is_reasoning: bool) -> None:
        self.index = index
        self.item_id = item_id
        self.is_reasoning = is_reasoning
        self.text = StringIO()
        delta = {"type": f"{self.event_prefix}.delta", "sequence_number": 0, **self.place, "delta": "", **self.logprobs}
        self.delta = FrameTemplate(encode_event(delta), "delta", "sequence_number")

    def part(self, text: str) -> Json:
        """Returns the item's only content part."""
        if self.is_reasoning:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def item(self, status: str, content: list[Json]) -> Json:
        """Returns the item."""
        if self.is_reasoning:
            return {"type": "reasoning", "id": self.item_id, "summary": [], "content": content, "status": status}
        return {"type": "message", "id": self.item_id, "role": "assistant", "content": content, "status": status}

    @property
    def event_prefix(self) -> str:
        """Returns the beginning of the types of the item's text events."""
        return "response.reasoning_text" if self.is_reasoning else "response.output_text"

    @property
    def logprobs(self) -> Json:
        """Returns the field that only events of a message have."""
        return {} if self.is_reasoning else {"logprobs": []}

    @property
    def place(self) -> Json:
        """Returns the fields by which events name the item's part."""
        return {"item_id": self.item_id, "output_index": self.index, "content_index": 0}


def usage_of(usage: Json) -> Json:
    """Returns the usage of a run as that of a response."""
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {name: usage.get(name) or 0 for name in ("cached_tokens", "cache_write_tokens")},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens", 0),
    }
