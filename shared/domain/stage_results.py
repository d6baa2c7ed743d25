"""The results of a run's stages: what `stage_completed` holds and later stages build on.

Docstrings and field descriptions are shown in docs/http-api.md.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class ToolCallRequest(BaseModel):
    """A tool call requested by the model."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="unique in the run, even if the provider repeats its ids")
    name: str = Field(description="name of the tool")
    arguments: str = Field(description="JSON text, as the model wrote it")
    extra_content: Json | None = Field(
        default=None,
        description="data of the provider that later requests must return to it, such as Gemini's thought_signature",
    )


class ToolOutcome(BaseModel):
    """A tool call with its result."""

    model_config = ConfigDict(frozen=True)

    call_id: str
    name: str = Field(description="name of the tool")
    arguments: str = Field(description="JSON text")
    content: str = Field(description="the result as the model gets it; at most the tool's max_result_bytes of UTF-8")
    is_error: bool = False


class ModelStageResult(BaseModel):
    """The `result` of the stages extraction and synthesis."""

    model_config = ConfigDict(frozen=True)

    text: str = ""
    tool_calls: list[ToolCallRequest] = []
    finish_reason: str | None = Field(
        default=None,
        description="why the answer ended: `stop`, `tool_calls`, `length` (cut off at the token limit), `content_filter` "
        "or another word of the provider; `refusal` if the text is the model's refusal",
    )
    model: str | None = Field(default=None, description="the model that answered, as the provider calls it")
    provider: str | None = Field(default=None, description="the provider that answered, as the providers file calls it")
    reasoning: str | None = Field(
        default=None, description="the model's reasoning before the calls; kept only if the provider needs it back"
    )
    reasoning_details: list[Json] | None = Field(
        default=None, description="the same as blocks in the provider's format, kept only if it needs them back"
    )

    def message(self, arguments_by_id: Mapping[str, str]) -> Json:
        """Returns the answer with calls as a chat completion message, the calls with the arguments with which they ran."""
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": arguments_by_id.get(call.id, call.arguments)},
            }
            | ({"extra_content": call.extra_content} if call.extra_content else {})
            for call in self.tool_calls
        ]
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls}


# With these finish reasons the model had not finished its answer, so that its calls may be incomplete.
CUT_REASONS: Final = frozenset({"length", "max_tokens", "content_filter"})


class ToolStageResult(BaseModel):
    """The `result` of the stage tools."""

    model_config = ConfigDict(frozen=True)

    outcomes: list[ToolOutcome]
