"""Generates the synchronous client's files from the asynchronous ones, so that their logic exists once.

python clients/python/make_synchronous.py
"""

import re
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).parents[2] / "src" / "stagebus" / "client"
# Each asynchronous file, and the file that is generated from it.
FILES: Final = (
    ("asynchronous.py", "synchronous.py"),
    ("threads_async.py", "threads_sync.py"),
    ("webhooks_async.py", "webhooks_sync.py"),
    ("client_tools_async.py", "client_tools_sync.py"),
)

# Applied in this order; \b limits a pattern to whole words.
_CHANGES: Final = (
    (r'^"""The client for asyncio\."""', '"""The client for threads and scripts. Generated from asynchronous.py by make_synchronous.py."""'),
    (r'^"""(.*), for asyncio\."""', r'"""\1, for scripts. Generated from its asynchronous form by make_synchronous.py."""'),
    (r"\bstagebus\.client\.asynchronous\b", "stagebus.client.synchronous"),
    (r"\bstagebus\.client\.(threads|client_tools|call_tasks|webhooks)_async\b", r"stagebus.client.\1_sync"),
    (r"\nimport asyncio\nimport logging\n", "\nimport logging\nimport time\n"),
    (r"\nimport asyncio\n", "\nimport time\n"),
    (r"\bawait asyncio\.sleep\b", "time.sleep"),
    (r"\bAsyncGenerator\[(RunEvent|ThreadEvent|FeedEvent|Received|bytes), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync(Generator|Iterator|Stagebus|Runs?|Threads?|Webhooks|Client|CallAnswerer|ThreadAnswerer|CallTasks|BaseTransport)\b", r"\1"),
    (r"\basync (with|def|for)\b", r"\1"),
    (r"(?<!\w)\(await ([\w.]+\([\w.]*\))\)", r"\1"),
    (r"\bawait ", ""),
    (r"for received in (events|follower\.accept(?:_page)?\(\w+\)|self\._client\.follow\(.+\)):\n +yield received\n", r"yield from \1\n"),
    (r"\baconnect_sse\b", "connect_sse"),
    (r"\b__a(enter|exit|iter)__\b", r"__\1__"),
    (r"for part in (.+):\n +yield part\n", r"yield from \1\n"),
    (r"\b(aiter_sse|aiter_bytes|aclosing|aclose|aread)\b", lambda match: match[0][1:]),
)  # fmt: skip


def generate_synchronous(source: str) -> str:
    """Return the synchronous form of one of the asynchronous files."""
    text = (CLIENT / source).read_text()
    for pattern, replacement in _CHANGES:
        text = re.sub(pattern, replacement, text)
    return text


if __name__ == "__main__":
    for source, target in FILES:
        (CLIENT / target).write_text(generate_synchronous(source))
