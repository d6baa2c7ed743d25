"""A run's request in the one form that is stored: the gateway makes it, the worker reads it.

Its reader ignores fields that it does not know: while a system is upgraded process by
process, a newer gateway makes runs for older workers. What a client misspells, the gateway refuses.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from stagebus.shared.domain.runs import ROUNDS_MAX

PROMPT_EXCERPT_CHARS: Final = 200

# One value for each model stage: extraction, synthesis.
StageInts = tuple[int | None, int | None]
StageFloats = tuple[float | None, float | None]


class RunRequest(BaseModel):
    """What a run is to do, with every default filled in."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | tuple[str, str] = Field(description="one, or those of extraction and synthesis")
    messages: list[dict[str, Any]] = Field(description="chat completion messages")
    tools: list[str] | None = Field(default=None, description="names; None: all that the worker has")
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
        """The models of extraction and synthesis."""
        return (self.model, self.model) if isinstance(self.model, str) else self.model

    @property
    def model_text(self) -> str:
        """The model or models as a run's record, its list and its first event name them."""
        extraction, synthesis = self.models
        return extraction if extraction == synthesis else f"extraction={extraction},synthesis={synthesis}"


def prompt_excerpt(messages: Iterable[dict[str, Any]]) -> str:
    """How the last user message begins; the text parts of it where it has parts."""
    asked = [message["content"] for message in messages if message.get("role") == "user"]
    if not asked:
        return ""
    content = asked[-1]
    if isinstance(content, list):
        content = " ".join(part["text"] for part in content if part.get("type") == "text")
    return str(content[:PROMPT_EXCERPT_CHARS])


# What `model_text` writes; a model's name may hold commas and equal signs, too.
_MODELS: Final = re.compile(r"extraction=(.+?),synthesis=(.+)")


def parse_models(text: str) -> str | dict[str, str]:
    """A model's name, or one for each stage, as a command line gives them."""
    match = _MODELS.fullmatch(text)
    return {"extraction": match[1], "synthesis": match[2]} if match else text
