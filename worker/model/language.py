"""The APIs by which providers are asked; each is a writer of requests and a reader of answers, both sans-IO.

    chat        POST /chat/completions    chat_request        chat_response
    responses   POST /responses           responses_request   responses_stream
    messages    POST /v1/messages         messages_request    messages_stream

Stages know one form alone, that of chat completions: a writer takes its fields, and a reader returns its chunks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Protocol

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import Api
from stagebus.worker.model.chat_chunks import Chunk
from stagebus.worker.model.chat_request import chat_request_body
from stagebus.worker.model.chat_response import ChatResponseReader

_ANTHROPIC_VERSION: Final = "2023-06-01"


class ResponseReader(Protocol):
    """Reads one answer: bytes in, chunks out."""

    @property
    def is_done(self) -> bool:
        """True after the last event."""

    @property
    def has_finish_reason(self) -> bool:
        """True once the answer may be complete."""

    @property
    def has_final_usage(self) -> bool:
        """True once only the last event, or nothing, can follow."""

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yields the chunks that these bytes complete; raises a `ModelError` for anything else."""

    def finish(self, content_type: str = "") -> Iterator[Chunk]:
        """Yields what the end of the body completes; raises a `ModelError` if the answer is incomplete."""

    def continuation(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the body that continues an answer which the provider paused; None if the answer is complete."""


@dataclass(frozen=True, slots=True)
class Language:
    """How a provider is asked by one API.

    Attributes:
        path: appended to the provider's base URL.
        auth_header: the header with the key, unless the providers file names one.
        headers: sent with each request, unless the providers file has the same.
        write: makes the body out of a chat completion's fields.
        reader: makes a reader with the limit of the output in bytes.
    """

    api: Api
    path: str
    write: Callable[[Mapping[str, Any], ModelRoute], dict[str, Any]]
    reader: Callable[[int], ResponseReader]
    auth_header: str = "Authorization"
    headers: Mapping[str, str] = field(default_factory=dict)

    def path_after(self, base_url: str) -> str:
        """Returns the path to append. A base URL may or may not end in the API's `/v1`."""
        version = "/v1"
        is_twice = self.path.startswith(f"{version}/") and base_url.rstrip("/").endswith(version)
        return self.path.removeprefix(version) if is_twice else self.path


@cache
def language_of(api: Api) -> Language:
    """Returns the language of an API. Its modules are imported when it is first used."""
    if api == "responses":
        from stagebus.worker.model.responses_request import responses_request_body
        from stagebus.worker.model.responses_stream import ResponsesReader

        return Language(api, "/responses", responses_request_body, ResponsesReader)
    if api == "messages":
        from stagebus.worker.model.messages_request import messages_request_body
        from stagebus.worker.model.messages_stream import MessagesReader

        headers = {"anthropic-version": _ANTHROPIC_VERSION}
        return Language(api, "/v1/messages", messages_request_body, MessagesReader, "x-api-key", headers)
    return Language(api, "/chat/completions", chat_request_body, ChatResponseReader)
