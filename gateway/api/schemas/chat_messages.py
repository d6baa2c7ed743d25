"""Chat completion messages as a request may hold them.

Only what the wire format of chat completions knows is let in; a provider gets the fields
that the client set, and no others.
Spec: https://platform.openai.com/docs/api-reference/chat/create#chat-create-messages
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

PARTS_MAX: Final = 256
TOOL_CALLS_MAX: Final = 128
NAME_MAX_CHARS: Final = 64
CALL_ID_MAX_CHARS: Final = 256


class WireModel(BaseModel):
    """Something that a client sends: known fields only, no type taken for another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class TextPart(WireModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(WireModel):
    """Where an image is, or the image itself as a data URL; the provider fetches it, Stagebus does not."""

    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(WireModel):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(WireModel):
    """Sound, base64."""

    data: str = Field(min_length=1)
    format: Literal["wav", "mp3"]


class AudioPart(WireModel):
    """A piece of sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class InputFile(WireModel):
    """A file, by its base64 data or by the provider's id."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(WireModel):
    """A file."""

    type: Literal["file"]
    file: InputFile


class RefusalPart(WireModel):
    """What the model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


def _text_or_parts(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


Part = Annotated[TextPart | ImagePart | AudioPart | FilePart | RefusalPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=PARTS_MAX)]
Content = Annotated[Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")], Discriminator(_text_or_parts)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS)]
CallId = Annotated[str, Field(min_length=1, max_length=CALL_ID_MAX_CHARS)]


class InstructionMessage(WireModel):
    """What the model is told to be."""

    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserMessage(WireModel):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: Name | None = None


class CalledFunction(WireModel):
    """A call's function and the JSON text of its arguments, as the model wrote it."""

    name: Name
    arguments: str


class CallMessage(WireModel):
    """A call that the model asked for."""

    id: CallId
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(WireModel):
    """What the model said, or the calls that it asked for."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[CallMessage], Field(min_length=1, max_length=TOOL_CALLS_MAX)] | None = None
    refusal: str | None = None
    name: Name | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None and self.refusal is None:
            raise ValueError("needs content, tool_calls or refusal")
        return self


class ToolMessage(WireModel):
    """A call's result."""

    role: Literal["tool"]
    tool_call_id: CallId
    content: Content


Message = Annotated[
    InstructionMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]
