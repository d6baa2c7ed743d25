"""A branch of a thread as a Markdown document for people.

Texts of users, models and tools stand in fenced code blocks, whose fences are longer than any in the text. So no text can
look like a part of the document, load an image or run a script where the document is shown, and none is changed.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from stagebus.shared.domain.threads import Thread
from stagebus.shared.store.thread_branch import BranchPage, TurnMessages

MARKDOWN: Final = "text/markdown"
_FENCE_MIN: Final = 3
_PUNCTUATION: Final = re.compile(r"([!-/:-@\[-`{-~])")
_LINE_ENDS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_HEADINGS: Final = {
    "user": "User",
    "assistant": "Assistant",
    "system": "System",
    "developer": "Developer",
    "tool": "Result",
}


async def render_markdown(thread: Thread, page: BranchPage) -> str:
    """Returns the document of a branch's page. Other requests are served after each turn: a page may take a second."""
    blocks = [f"# {_inline(thread.title or thread.identity.thread_id)}"]
    if page.before is not None:
        blocks.append("*Older turns are left out.*")
    for read in page.turns:
        blocks += _turn_blocks(read)
        await asyncio.sleep(0)
    return "\n\n".join(blocks) + "\n"


def _turn_blocks(read: TurnMessages) -> Iterator[str]:
    if read.turn.is_deleted:
        yield f"*The run {read.turn.run_id} was deleted.*"
        return
    for message in (*orjson.loads(read.messages), *orjson.loads(read.result)):
        yield from _message_blocks(message)
    if read.turn.status not in ("", "succeeded"):
        reason = f" ({_inline(read.turn.code)})" if read.turn.code else ""
        yield f"*The run {read.turn.run_id}: {_inline(read.turn.status)}{reason}.*"


def _message_blocks(message: Mapping[str, Any]) -> Iterator[str]:
    role = str(message.get("role", ""))
    heading = _HEADINGS.get(role) or _inline(role)
    if message.get("partial"):
        heading += " (stopped)"
    text = _text_of(message.get("content")) or _text_of(message.get("refusal"))
    if text or not message.get("tool_calls"):
        yield f"## {heading}"
        yield _fenced(text)
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        yield f"## Call of {_inline(str(function.get('name', '')))}"
        yield _fenced(str(function.get("arguments", "")), "json")


def _text_of(content: Any) -> str:
    """Returns the text of a message's content; other parts are named."""
    if isinstance(content, list):
        return "\n".join(_part_text(part) for part in content)
    return "" if content is None else content if isinstance(content, str) else orjson.dumps(content).decode()


def _part_text(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    text = part.get("text", part.get("refusal"))
    return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"


def _fenced(text: str, language: str = "text") -> str:
    """Returns a code block with the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(_FENCE_MIN, longest + 1)
    # A carriage return alone would be the end of a line for some readers and not for others.
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"{fence}{language}\n{lines}\n{fence}"


def _inline(text: str) -> str:
    """Returns the text as a part of a line: on one line, and without meaning in Markdown or HTML."""
    return _PUNCTUATION.sub(r"\\\1", _LINE_ENDS.sub(" ", text))
