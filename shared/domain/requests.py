"""The stored form of a run's request. The gateway writes it and the worker reads it.

Readers ignore unknown fields: during an upgrade a newer gateway creates runs for older workers. The gateway rejects
unknown fields of clients.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from stagebus.shared.domain.runs import ROUNDS_MAX
from stagebus.shared.domain.token_estimate import DEFAULT_ANSWER_TOKENS, estimate_prompt_tokens

PROMPT_EXCERPT_CHARS: Final = 200

T = TypeVar("T")
# The values of extraction and synthesis.
PerStage = tuple[T | None, T | None]
NO_VALUES: Final = (None, None)
# A parameter that is left out if no stage has a value, so that the same request has the same JSON in older versions.
NewPerStage = Annotated[PerStage[T], Field(exclude_if=lambda values: values == NO_VALUES)]
# The parameters of a request to a model that have one value per stage. They have the names of chat completions.
STAGE_PARAMETERS: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "reasoning_effort",
    "verbosity",
    "service_tier",
)


class ClientTool(BaseModel):
    """A tool that the request defines and whose calls a client runs.

    Attributes:
        strict: the provider enforces the schema, if it can.
        once: only one client may ever run a call.
        expires_in: seconds after which a call without a result gets an error; None for the default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False
    once: bool = False
    expires_in: float | None = None


class RunRequest(BaseModel):
    """The request of a run, with all defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | tuple[str, str] = Field(description="one model, or those of extraction and synthesis")
    messages: list[dict[str, Any]] = Field(
        default=[], description="chat completion messages; empty for a run of a thread, which holds them itself"
    )
    tools: list[str] | None = Field(default=None, description="names of tools; None for all tools of the worker")
    client_tools: list[ClientTool] = Field(
        default=[],
        exclude_if=lambda tools: not tools,
        description="the tools of `tools` that the request defines; a worker of an older version misses them and says so",
    )
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool | None = None
    synthesis: bool = True
    max_tokens: PerStage[int] = NO_VALUES
    temperature: PerStage[float] = NO_VALUES
    top_p: NewPerStage[float] = NO_VALUES
    stop: NewPerStage[list[str]] = NO_VALUES
    seed: NewPerStage[int] = NO_VALUES
    reasoning_effort: NewPerStage[str] = NO_VALUES
    verbosity: NewPerStage[str] = NO_VALUES
    service_tier: NewPerStage[str] = NO_VALUES
    response_format: dict[str, Any] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the form of the answer as in chat completions; None for text",
    )
    max_total_tokens: int | None = Field(default=None, exclude_if=lambda value: value is None)
    max_rounds: Annotated[int, Field(ge=1, le=ROUNDS_MAX)] = 1
    timeout_s: float
    metadata: dict[str, str] = {}
    webhook_url: str | None = Field(default=None, exclude_if=lambda value: value is None)
    prompt: str = Field(
        default="",
        exclude_if=lambda value: not value,
        description="the excerpt of the messages for lists, if the run's thread has the messages",
    )
    parent_run_id: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the turn before that the client named, or ROOT; None: the thread's current branch",
    )
    truncate: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="how the history of the run's thread is made to fit the model; None: it is not",
    )

    def without_messages(self) -> "RunRequest":
        """Returns the request of a run whose thread has its messages, with their excerpt."""
        return self.model_copy(update={"messages": [], "prompt": prompt_excerpt(self.messages)})

    @property
    def registry_tools(self) -> list[str]:
        """Returns the named tools that a worker must have."""
        own = {tool.name for tool in self.client_tools}
        return [name for name in self.tools or [] if name not in own]

    @property
    def models(self) -> tuple[str, str]:
        """Returns the models of extraction and synthesis."""
        return (self.model, self.model) if isinstance(self.model, str) else self.model

    def estimate_tokens(self) -> int:
        """Estimates the tokens of the first round and the synthesis, at most `max_total_tokens`; reserved at creation."""
        answers = self.max_tokens if self.synthesis else self.max_tokens[:1]
        prompt_tokens = estimate_prompt_tokens(self.messages)
        tokens = sum(prompt_tokens + (answer or DEFAULT_ANSWER_TOKENS) for answer in answers)
        return tokens if self.max_total_tokens is None else min(tokens, self.max_total_tokens)

    @property
    def model_text(self) -> str:
        """Returns the model or models as text, for the run's record, the list of runs and the first event."""
        extraction, synthesis = self.models
        return extraction if extraction == synthesis else f"extraction={extraction},synthesis={synthesis}"


def excerpt_of(request: Mapping[str, Any]) -> str:
    """Returns the beginning of the last user message of a stored request."""
    return request.get("prompt") or prompt_excerpt(request.get("messages", []))


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
