"""What a tool's docstring tells the model; sans-IO.

Google's sections: the text before them describes the tool, `Args` its parameters, and
the rest is for people.
Spec: https://google.github.io/styleguide/pyguide.html#383-functions-and-methods
"""

import inspect
import re
from typing import Final, NamedTuple

_SECTION: Final = re.compile(
    r"^(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?|Attributes|See Also|Todo|Warnings?):\s*$"
)
_OF_PARAMETERS: Final = frozenset({"Args", "Arguments", "Parameters"})
_PARAMETER: Final = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


class Documentation(NamedTuple):
    """A docstring, taken apart."""

    description: str
    parameters: dict[str, str]


def parse_docstring(docstring: str | None) -> Documentation:
    """The tool's description, and that of each parameter that has one."""
    described: list[str] = []
    arguments: list[str] = []
    section = ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        match = _SECTION.match(line)
        if match:
            section = match[1]
        elif not section:
            described.append(line)
        elif section in _OF_PARAMETERS:
            arguments.append(line)
    return Documentation("\n".join(described).strip(), _parameters(arguments))


def _parameters(lines: list[str]) -> dict[str, str]:
    indents = [_indent(line) for line in lines if line.strip()]
    outermost = min(indents, default=0)
    words: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        match = _PARAMETER.match(line.strip()) if _indent(line) == outermost else None
        if match:
            name = match[1]
            words[name] = [match[2]]
        elif name:
            words[name].append(line.strip())
    return {name: " ".join(part for part in parts if part) for name, parts in words.items() if any(parts)}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
