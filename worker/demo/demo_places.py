"""Finds the places in a prompt; sans-IO.

What is the weather in Paris and in Tokyo?      Paris, Tokyo
weather for Rio de Janeiro or St. Louis         Rio de Janeiro, St. Louis
weather in paris and tokyo                      paris, tokyo
"""

import re
from collections.abc import Iterator
from typing import Final

PLACES_MAX: Final = 32

_PARTICLES: Final = r"(?:de|da|do|del|della|di|du|la|le|el|am|an|der|sur|upon|den)"
_CAPITALISED: Final = r"(?:St\.[ ])?[^\W\d_a-zß-öø-ÿ][\w\u2019'-]*"
_NAME: Final = rf"{_CAPITALISED}(?:[ ](?:{_PARTICLES}[ ])*{_CAPITALISED})*"
_SEPARATOR: Final = r"\s*(?:[,;&/]|\band\b|\bor\b)\s*"
_PREPOSITION: Final = r"(?:in|for|at|near|of)\s+"

_INTRODUCED: Final = re.compile(rf"(?:\b{_PREPOSITION}|:\s*)({_NAME})")
_CONTINUED: Final = re.compile(rf"(?:{_SEPARATOR})+(?:{_PREPOSITION})?({_NAME})")

_ABOUT_WEATHER: Final = re.compile(r"weather|forecast|temperature|warm|cold|hot|rain|snow|wind|sun", re.IGNORECASE)
_LOWERCASE: Final = re.compile(r"\b(?:in|for|at)\s+([^?!.;:{}]+)")
_LOWERCASE_SEPARATOR: Final = re.compile(rf"{_SEPARATOR}(?:{_PREPOSITION})?")
_TRAILING: Final = re.compile(r"\s+(?:right now|now|today|tomorrow|tonight|please|like|at the moment)$")
_WORDS_MAX: Final = 4

_NOT_PLACES: Final = frozenset({"I", "Celsius", "Fahrenheit", "JSON", "English", "French", "German", "Spanish"})


def places_in(prompt: str) -> list[str]:
    """Returns the places in the order of the prompt, without duplicates."""
    names = list(_capitalised(prompt)) or list(_lowercase(prompt))
    return list(dict.fromkeys(name for name in names if name not in _NOT_PLACES))[:PLACES_MAX]


def _capitalised(prompt: str) -> Iterator[str]:
    position = 0
    while match := _INTRODUCED.search(prompt, position):
        yield match[1]
        position = match.end()
        while match := _CONTINUED.match(prompt, position):
            yield match[1]
            position = match.end()


def _lowercase(prompt: str) -> Iterator[str]:
    match = _LOWERCASE.search(prompt) if _ABOUT_WEATHER.search(prompt) else None
    if match is None:
        return
    for part in _LOWERCASE_SEPARATOR.split(match[1]):
        name = _TRAILING.sub("", part.strip())
        if name and len(name.split()) <= _WORDS_MAX:
            yield name
