"""Makes the roles of a conversation alternate, for models whose servers refuse any other order; sans-IO.

    user, user         become one: a turn that was stopped before its answer, or a message that joined a run
    tool, user         get an assistant's message between them: a turn that was stopped after its calls

The Messages API joins the messages of one role by itself (see `messages_request`).
"""

import re
from collections.abc import Iterable
from typing import Any, Final

Item = dict[str, Any]

# What servers say: vLLM and llama.cpp with the templates of Gemma, Llama and Mistral; Mistral; DeepSeek; Perplexity.
_REFUSALS: Final = re.compile(
    r"roles? must alternate|should alternate|successive (?:user|assistant)|consecutive (?:user|assistant)"
    r"|unexpected role 'user' after role 'tool'",
    re.IGNORECASE,
)
# Says nothing, and is not empty: empty text is refused, too.
_FILLER: Final = "…"
# The fields in which the APIs have the conversation, and how they call a text part.
_TEXT_PART_BY_FIELD: Final = {"messages": "text", "input": "input_text"}


def demands_alternation(message: str) -> bool:
    """Returns whether a server refused a request because of the order of its roles."""
    return _REFUSALS.search(message) is not None


def with_alternating_roles(body: Item) -> Item:
    """Returns the body of a request of chat completions or Responses with a conversation whose roles alternate."""
    return body | {
        field: _alternate(body[field], text_part) for field, text_part in _TEXT_PART_BY_FIELD.items() if field in body
    }


def _alternate(items: Iterable[Item], text_part: str) -> list[Item]:
    alternating: list[Item] = []
    for item in items:
        last = alternating[-1] if alternating else {}
        if _is_plain(item) and _is_plain(last) and _speaker(item) == _speaker(last):
            alternating[-1] = last | {"content": _join(last["content"], item["content"], text_part)}
            continue
        if item.get("role") == "user" and _is_result(last):
            alternating.append({"role": "assistant", "content": _FILLER})
        alternating.append(item)
    return alternating


def _is_plain(item: Item) -> bool:
    """Returns whether a message is text or parts alone, and not a call."""
    has_content = isinstance(item.get("content"), str | list) and not item.get("tool_calls")
    return has_content and item.get("role") in ("user", "assistant") and item.get("type") in (None, "message")


def _speaker(item: Item) -> tuple[Any, Any]:
    return item["role"], item.get("name")


def _is_result(item: Item) -> bool:
    return item.get("role") == "tool" or item.get("type") == "function_call_output"


def _join(first: str | list[Item], second: str | list[Item], text_part: str) -> str | list[Item]:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"

    def parts(content: str | list[Item]) -> list[Item]:
        return [{"type": text_part, "text": content}] if isinstance(content, str) else content

    return parts(first) + parts(second)
