"""Reads the docstring of a tool: the description of the tool and of each parameter; sans-IO.

The text before the first section describes the tool. Other sections than that of the parameters are for people.
The docstring's style is the one in which the most sections are found.
Spec: https://google.github.io/styleguide/pyguide.html#383-functions-and-methods
Spec: https://numpydoc.readthedocs.io/en/latest/format.html
Spec: https://www.sphinx-doc.org/en/master/usage/domains/python.html#info-field-lists
"""

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from docstring_parser import Docstring

# Sections of Google's style that docstring-parser 0.18 takes for a part of the description.
_FURTHER_SECTIONS: Final = ("Note", "Notes", "See Also", "Todo", "Warning", "Warnings")


class Documentation(NamedTuple):
    """A parsed docstring."""

    description: str
    parameters: dict[str, str]


def parse_docstring(docstring: str | None) -> Documentation:
    """Returns the description of a tool, and those of its parameters that have one."""
    # Imported here: `stagebus.tools` works without the server's dependencies.
    from docstring_parser import ParseError, google, numpydoc, rest

    sections = [google.Section(title, title.lower(), google.SectionType.SINGULAR) for title in _FURTHER_SECTIONS]
    parsed: list[Docstring] = []
    for parse in (google.GoogleParser([*google.DEFAULT_SECTIONS, *sections]).parse, numpydoc.parse, rest.parse):
        try:
            parsed.append(parse(docstring or ""))
        except ParseError:
            continue
    if not parsed:
        return Documentation((docstring or "").strip(), {})
    best = max(parsed, key=lambda found: len(found.meta))
    return Documentation((best.description or "").strip(), _parameters(best))


def _parameters(parsed: "Docstring") -> dict[str, str]:
    described: dict[str, str] = {}
    for parameter in parsed.params:
        words = " ".join((parameter.description or "").split())
        if words and parameter.args[0] != "attribute":
            # NumPy's style allows one description for several parameters.
            described |= {name.strip().lstrip("*"): words for name in parameter.arg_name.split(",")}
    return described
