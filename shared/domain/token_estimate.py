"""Estimates tokens that no provider has counted: before a request, and for answers that were cut off; sans-IO."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

BYTES_PER_TOKEN: Final = 4
# The estimate for an answer without `max_tokens`.
DEFAULT_ANSWER_TOKENS: Final = 500
# An image, audio or file counts this much, whatever its size: its base64 text is not what the provider counts.
ATTACHMENT_TOKENS: Final = 1000
_ATTACHMENT_TYPES: Final = frozenset({"image_url", "input_audio", "file"})


def estimate_answer_tokens(size_bytes: int) -> int:
    """Returns the estimate for an answer of this many UTF-8 bytes, rounded up."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def estimate_prompt_tokens(messages: Iterable[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    """Returns the estimate for a request's messages and tool definitions: four bytes of JSON per token."""
    attachment_count = 0
    texts: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            rest = [part for part in content if part.get("type") not in _ATTACHMENT_TYPES]
            attachment_count += len(content) - len(rest)
            message = {**message, "content": rest}  # noqa: PLW2901 - the message without its attachments
        texts.append(message)
    return len(orjson.dumps([texts, tools])) // BYTES_PER_TOKEN + attachment_count * ATTACHMENT_TOKENS
