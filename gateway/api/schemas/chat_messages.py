"""Chat completion messages in a request.

Only fields of the chat completions format are accepted. The provider receives exactly the fields that the client set.
Spec: https://platform.openai.com/docs/api-reference/chat/create#chat-create-messages
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

PARTS_MAX: Final = 256
TOOL_CALLS_MAX: Final = 128
NAME_MAX_CHARS: Final = 64
CALL_ID_MAX_CHARS: Final = 256


class WireModel(BaseModel):
    """A part of a request body. Unknown fields are rejected, and types are not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class TextPart(WireModel):
    """A text part."""

    type: Literal["text"] = Field(description="the part's type")
    text: str = Field(description="the text")


class ImageUrl(WireModel):
    """The URL of an image. The provider fetches it, Stagebus does not."""

    url: str = Field(min_length=1, description="a URL, or a `data:` URL with the image itself")
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None, description="the resolution that the model sees"
    )


class ImagePart(WireModel):
    """An image part."""

    type: Literal["image_url"] = Field(description="the part's type")
    image_url: ImageUrl = Field(description="the image")


class InputAudio(WireModel):
    """Audio data."""

    data: str = Field(min_length=1, description="the audio file in base64")
    format: Literal["wav", "mp3"] = Field(description="the file's format")


class AudioPart(WireModel):
    """An audio part."""

    type: Literal["input_audio"] = Field(description="the part's type")
    input_audio: InputAudio = Field(description="the audio")


class InputFile(WireModel):
    """A file, given by its data or by the provider's id."""

    file_data: str | None = Field(default=None, description="the file in base64")
    file_id: str | None = Field(default=None, description="the id of a file that the provider stores")
    filename: str | None = Field(default=None, description="the file's name")


class FilePart(WireModel):
    """A file part."""

    type: Literal["file"] = Field(description="the part's type")
    file: InputFile = Field(description="the file")


class RefusalPart(WireModel):
    """A refusal part of an assistant's message."""

    type: Literal["refusal"] = Field(description="the part's type")
    refusal: str = Field(description="what the model said instead of an answer")


def _text_or_parts(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


Part = Annotated[TextPart | ImagePart | AudioPart | FilePart | RefusalPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=PARTS_MAX)]
Content = Annotated[Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")], Discriminator(_text_or_parts)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS)]
CallId = Annotated[str, Field(min_length=1, max_length=CALL_ID_MAX_CHARS)]


class InstructionMessage(WireModel):
    """Instructions for the model."""

    role: Literal["system", "developer"] = Field(description="the message's role")
    content: Content = Field(description="the instructions")
    name: Name | None = Field(default=None, description="tells participants with the same role apart")


class UserMessage(WireModel):
    """A message from the user."""

    role: Literal["user"] = Field(description="the message's role")
    content: Content = Field(description="text, or a list of parts")
    name: Name | None = Field(default=None, description="tells participants with the same role apart")


class CalledFunction(WireModel):
    """The function of a tool call."""

    name: Name = Field(description="the tool's name")
    arguments: str = Field(description="the arguments as JSON text, as the model wrote it")


class CallMessage(WireModel):
    """A tool call by the model."""

    id: CallId = Field(description="the call's id, to which its `tool` message refers")
    type: Literal["function"] = Field(description="the call's type")
    function: CalledFunction = Field(description="the tool and its arguments")


class AssistantMessage(WireModel):
    """A message from the model: an answer, a refusal or tool calls."""

    role: Literal["assistant"] = Field(description="the message's role")
    content: Content | None = Field(default=None, description="text, or a list of parts")
    tool_calls: Annotated[list[CallMessage], Field(min_length=1, max_length=TOOL_CALLS_MAX)] | None = Field(
        default=None, description="the model's tool calls"
    )
    refusal: str | None = Field(default=None, description="what the model said instead of an answer")
    name: Name | None = Field(default=None, description="tells participants with the same role apart")

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if self.content is None and self.tool_calls is None and self.refusal is None:
            raise ValueError("needs content, tool_calls or refusal")
        return self


class ToolMessage(WireModel):
    """The result of a tool call."""

    role: Literal["tool"] = Field(description="the message's role")
    tool_call_id: CallId = Field(description="the id of the call")
    content: Content = Field(description="the result")


Message = Annotated[
    InstructionMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]
