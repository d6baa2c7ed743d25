"""Where Markdown has code: blocks between fences, and words between backticks; sans-IO.

Words end with their line, though the specification lets them go on: a backtick too many hides no more than that.

Spec: https://spec.commonmark.org/0.31.2/#fenced-code-blocks
"""

import re
from typing import Final

_OPENING: Final = re.compile(r"(?:(?<=\n)|\A)[ \t]*(```+|~~~+)[^\n]*|(`+)")
_RUN: Final = re.compile(r"`+")


def find_code_end(text: str, start: int, place: int) -> int:
    """Where the code ends that the place stands in; 0 where it stands in none.

    Args:
        start: a place before it that is in no code.
    """
    while (opening := _OPENING.search(text, start, place)) is not None:
        end = _fence_end(text, opening) if opening[1] else _inline_end(text, opening)
        if end > place:
            return end
        start = end
    return 0


def _fence_end(text: str, opening: re.Match[str]) -> int:
    """A block that nothing ends goes on to the text's end."""
    closing = re.compile(rf"\n[ \t]*{opening[1]}[ \t]*(?=\n|\Z)").search(text, opening.end())
    return closing.end() if closing else len(text) + 1


def _inline_end(text: str, opening: re.Match[str]) -> int:
    """Backticks that none like them follow, on the same line, are no more than themselves."""
    line_end = text.find("\n", opening.end())
    for run in _RUN.finditer(text, opening.end(), len(text) if line_end < 0 else line_end):
        if len(run[0]) == len(opening[2]):
            return run.end()
    return opening.end()
