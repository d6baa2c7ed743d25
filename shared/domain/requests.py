"""The stored form of a run's request. The gateway writes it and the worker reads it.

Readers ignore unknown fields: during an upgrade a newer gateway creates runs for older workers. The gateway rejects
unknown fields of clients.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from stagebus.shared.domain.runs import ROUNDS_MAX

PROMPT_EXCERPT_CHARS: Final = 200

# The values of extraction and synthesis.
StageInts = tuple[int | None, int | None]
StageFloats = tuple[float | None, float | None]


class RunRequest(BaseModel):
    """The request of a run, with all defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | tuple[str, str] = Field(description="one model, or those of extraction and synthesis")
    messages: list[dict[str, Any]] = Field(description="chat completion messages")
    tools: list[str] | None = Field(default=None, description="names of tools; None for all tools of the worker")
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool | None = None
    synthesis: bool = True
    max_tokens: StageInts = (None, None)
    temperature: StageFloats = (None, None)
    max_rounds: Annotated[int, Field(ge=1, le=ROUNDS_MAX)] = 1
    timeout_s: float
    metadata: dict[str, str] = {}

    @property
    def models(self) -> tuple[str, str]:
        """Returns the models of extraction and synthesis."""
        return (self.model, self.model) if isinstance(self.model, str) else self.model

    @property
    def model_text(self) -> str:
        """Returns the model or models as text, for the run's record, the list of runs and the first event."""
        extraction, synthesis = self.models
        return extraction if extraction == synthesis else f"extraction={extraction},synthesis={synthesis}"


def prompt_excerpt(messages: Iterable[dict[str, Any]]) -> str:
    """Returns the beginning of the last user message, or of its text parts."""
    asked = [message["content"] for message in messages if message.get("role") == "user"]
    if not asked:
        return ""
    content = asked[-1]
    if isinstance(content, list):
        content = " ".join(part["text"] for part in content if part.get("type") == "text")
    return str(content[:PROMPT_EXCERPT_CHARS])


# The form that `model_text` writes. Model names may contain commas and equal signs.
_MODELS: Final = re.compile(r"extraction=(.+?),synthesis=(.+)")


def parse_models(text: str) -> str | dict[str, str]:
    """Parses `model_text`: returns a model's name, or the name for each stage."""
    match = _MODELS.fullmatch(text)
    return {"extraction": match[1], "synthesis": match[2]} if match else text
