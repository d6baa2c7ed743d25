"""A run's request in the one form that is stored: the gateway makes it, the worker reads it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shared.runs import ROUNDS_MAX

# One value for each model stage: extraction, synthesis.
StageInts = tuple[int | None, int | None]
StageFloats = tuple[float | None, float | None]


class RunRequest(BaseModel):
    """What a run is to do, with every default filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
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
