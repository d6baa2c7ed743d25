"""Finds the tools that a prompt is about, and writes arguments for them; sans-IO, for the demo model.

    count_words      "Count the words of a text."      the tool's name and description
    Please count the words: "one two three"            calls count_words {"text": "one two three"}

A tool is meant if the words of its name, or of its description's first sentence, come in the prompt in that order.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_WORD: Final = re.compile(r"[^\W_]+")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_QUOTED: Final = re.compile(r"\"([^\"]+)\"|“([^”]+)”|'([^']+)'(?!\w)|:\s+([^\s\"“'].*)", re.DOTALL)
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_NAME_MIN_CHARS: Final = 4  # a shorter name is a word of too many prompts
_DESCRIPTION_MIN_WORDS: Final = 2
_MINOR_MAX_CHARS: Final = 3  # of a word such as "the", which a prompt may leave out
_DEPTH_MAX: Final = 4


def is_meant(function: Mapping[str, Any], prompt: str) -> bool:
    """Returns whether a prompt is about a tool.

    Args:
        function: the tool's definition in a chat completion request.
    """
    said = _words(prompt)
    name = str(function.get("name") or "")
    if len(name) >= _NAME_MIN_CHARS and _come_in_order(_words(_CAMEL.sub(" ", name)), said):
        return True
    sentence = str(function.get("description") or "").partition(".")[0]
    words = _words(sentence)
    major = [word for word in words if len(word) > _MINOR_MAX_CHARS]
    words = major if len(major) >= _DESCRIPTION_MIN_WORDS else words
    return len(words) >= _DESCRIPTION_MIN_WORDS and _come_in_order(words, said)


def write_arguments(function: Mapping[str, Any], prompt: str) -> str:
    """Returns values for a tool's required parameters as JSON, with the prompt's quoted texts and numbers in order."""
    quoted = iter([next(filter(None, match.groups())).strip() for match in _QUOTED.finditer(prompt)])
    numbers = iter(_NUMBER.findall(prompt))
    parameters = function.get("parameters")
    schema = parameters if isinstance(parameters, dict) else {}
    value = _ArgumentWriter(schema, quoted, numbers, prompt).write({**schema, "type": "object"})
    return json.dumps(value, ensure_ascii=False)


class _ArgumentWriter:
    def __init__(self, root: Mapping[str, Any], quoted: Iterator[str], numbers: Iterator[str], prompt: str) -> None:
        self._root = root
        self._quoted = quoted
        self._numbers = numbers
        self._prompt = prompt

    def write(self, schema: object, depth: int = 0) -> Any:
        schema = self._resolved(schema)
        options = schema.get("enum")
        if "const" in schema or "default" in schema:
            return schema.get("const", schema.get("default"))
        if isinstance(options, list) and options:
            return next((option for option in options if str(option).lower() in self._prompt.lower()), options[0])
        kinds = schema.get("type")
        kind = kinds[0] if isinstance(kinds, list) and kinds else kinds
        if kind in ("integer", "number"):
            return self._number(schema, is_whole=kind == "integer")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [self.write(schema.get("items"), depth + 1)] if depth < _DEPTH_MAX else []
        return (
            {"boolean": True, "null": None}[kind] if kind in ("boolean", "null") else next(self._quoted, self._prompt)
        )

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, dict) or not isinstance(required, list) or depth >= _DEPTH_MAX:
            return {}
        return {name: self.write(properties.get(name), depth + 1) for name in required if isinstance(name, str)}

    def _number(self, schema: Mapping[str, Any], *, is_whole: bool) -> float:
        lowest, highest = schema.get("minimum", 1), schema.get("maximum")
        text = next(self._numbers, None)
        value = float(text) if text is not None else float(lowest) if isinstance(lowest, int | float) else 1.0
        if isinstance(lowest, int | float) and "minimum" in schema:
            value = max(value, lowest)
        if isinstance(highest, int | float):
            value = min(value, highest)
        return int(value) if is_whole else value

    def _resolved(self, schema: object) -> Mapping[str, Any]:
        """Returns the schema, or the one that it refers to, or its first alternative."""
        for _ in range(_DEPTH_MAX):
            if not isinstance(schema, dict):
                return {}
            reference = str(schema.get("$ref", ""))
            options = schema.get("anyOf") or schema.get("oneOf")
            if reference.startswith("#/$defs/"):
                definitions = self._root.get("$defs")
                schema = definitions.get(reference.removeprefix("#/$defs/")) if isinstance(definitions, dict) else None
            elif isinstance(options, list) and options:
                schema = options[0]
            else:
                return schema
        return {}


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _come_in_order(words: list[str], said: list[str]) -> bool:
    rest = iter(said)
    return bool(words) and all(word in rest for word in words)
