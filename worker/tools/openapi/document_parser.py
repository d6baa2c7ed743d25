"""Parses the text of an OpenAPI document, JSON or YAML, with limits on depth and size; sans-IO.

The text is hostile: `[` a hundred thousand times overflows the stack of PyYAML's composer (6.0), and aliases make a few
lines expand to gigabytes wherever something walks or writes them. Here only libyaml's events are used. The composer below
does not recurse, and counts what each alias and each `<<` stands for.

Plain words are those of YAML 1.2, which OpenAPI prescribes: `NO` and `on` are texts, and so is a date. Keys are always texts.
Spec: https://yaml.org/spec/1.2.2/#103-core-schema
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson
import yaml

from stagebus.shared.errors import BadTool

# Real documents are at most some 40 levels deep.
DEPTH_MAX: Final = 100
# Scalars' characters and nodes, with everything that aliases stand for.
EXPANDED_MAX: Final = 2**26

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# libyaml compares each directive with all earlier ones.
_DIRECTIVE: Final = re.compile(r"^%(?!YAML )", re.MULTILINE)
_WORDS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,20}|0o[0-7]{1,21}|0x[0-9a-fA-F]{1,16}")
_NUMBER: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_TEXT_TAGS: Final = frozenset({"!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:binary"})
_MERGE: Final = "<<"


def parse_document(text: bytes) -> Mapping[str, Any]:
    """Parses an OpenAPI 3 document in JSON or YAML.

    Raises:
        BadTool: the text is neither, is nested too deep or expands to too much, or is no OpenAPI 3 document.
    """
    document = _parse(text)
    if not isinstance(document, Mapping) or not str(document.get("openapi", "")).startswith(("3.0", "3.1")):
        raise BadTool("the document is not OpenAPI 3.0 or 3.1")
    return document


def _parse(text: bytes) -> Any:
    try:
        return orjson.loads(text)  # nests at most 1,024 levels
    except orjson.JSONDecodeError:
        pass
    try:
        return _Composer(text.decode("utf-8-sig")).compose()
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise BadTool(f"the document is neither JSON nor YAML: {reason}") from None


class _OpenNode:
    """A mapping or a sequence whose end has not come yet."""

    def __init__(self, value: dict[str, Any] | list[Any], anchor: str | None) -> None:
        self.value = value
        self.anchor = anchor
        self.key: str | None = None
        self.merged: list[Mapping[str, Any]] = []
        self.is_merging = False
        self.size = 1
        self.height = 1

    def add(self, node: "_Node") -> None:
        """Adds a key, a value or an item."""
        self.size += node.size
        self.height = max(self.height, node.height + 1)
        if isinstance(self.value, list):
            self.value.append(node.value)
        elif self.is_merging:
            self._merge(node.value)
        elif self.key is not None:
            self.value[self.key] = node.value
            self.key = None
        elif node.key is None:
            raise BadTool("the document is invalid YAML: a key is not text")
        elif node.key == _MERGE and node.is_plain:
            self.is_merging = True
        else:
            self.key = node.key

    def close(self) -> "_Node":
        """Returns the complete node. Its own keys override merged ones, and earlier merged ones override later ones."""
        if self.merged and isinstance(self.value, dict):
            own = dict(self.value)
            self.value.clear()  # and not replaced: aliases may already refer to it
            for mapping in reversed(self.merged):
                self.value.update(mapping)
            self.value.update(own)
        return _Node(self.value, size=self.size, height=self.height)

    def _merge(self, value: Any) -> None:
        self.is_merging = False
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise BadTool("the document is invalid YAML: << needs a mapping")
        self.merged += mappings


class _Node:
    """A complete value, with its size and height after the expansion of aliases; `key` is its text as a mapping's key."""

    def __init__(
        self, value: Any, *, size: int, height: int = 1, key: str | None = None, is_plain: bool = False
    ) -> None:
        self.value = value
        self.size = size
        self.height = height
        self.key = key
        self.is_plain = is_plain


class _Composer:
    """Makes a value of libyaml's events, without recursion."""

    def __init__(self, text: str) -> None:
        if _DIRECTIVE.search(text):
            raise BadTool("the document has YAML directives, which are not supported")
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._open: list[_OpenNode] = []
        self._node_by_anchor: dict[str, _Node] = {}
        self._size = 0

    def compose(self) -> Any:
        """Returns the value of the first document; None if the text is empty."""
        value = None
        for event in self._events:
            if isinstance(event, yaml.DocumentEndEvent):
                next(self._events)  # raises an error if what follows is neither the end nor another document
                break
            node = self._read(event)
            if node is not None and self._open:
                self._open[-1].add(node)
            elif node is not None:
                value = node.value
        return value

    def _read(self, event: Any) -> _Node | None:
        """Returns the node that the event completes."""
        if isinstance(event, yaml.ScalarEvent):
            is_word = event.implicit[0] if event.tag is None else event.tag not in _TEXT_TAGS
            value = _resolve(event.value) if is_word else event.value
            node = _Node(value, size=1 + len(event.value), key=event.value, is_plain=event.implicit[0])
            self._grow(node.size, 0)
            return self._remember(event.anchor, node)
        if isinstance(event, yaml.AliasEvent):
            return self._expand(str(event.anchor))
        if isinstance(event, yaml.CollectionStartEvent):
            self._grow(1, 1)
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            self._open.append(_OpenNode({} if is_mapping else [], event.anchor))
            if event.anchor is not None:
                self._node_by_anchor.pop(event.anchor, None)  # until its end, nothing may refer to it
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = self._open.pop()
            return self._remember(ended.anchor, ended.close())
        return None

    def _expand(self, anchor: str) -> _Node:
        node = self._node_by_anchor.get(anchor)
        if node is None:
            raise BadTool(f"the document is invalid YAML: the alias *{anchor[:50]} refers to nothing before it")
        self._grow(node.size, node.height)
        return node

    def _remember(self, anchor: str | None, node: _Node) -> _Node:
        if anchor is not None:
            self._node_by_anchor[anchor] = node
        return node

    def _grow(self, size: int, height: int) -> None:
        self._size += size
        if len(self._open) + height > DEPTH_MAX:
            raise BadTool(f"the document is nested deeper than {DEPTH_MAX} levels")
        if self._size > EXPANDED_MAX:
            raise BadTool(f"the document expands to more than {EXPANDED_MAX} characters and nodes")


def _resolve(text: str) -> Any:
    """Returns the value of a plain word: null, a boolean, a number within 64 bits or a float, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        integer = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        return integer if -(2**63) <= integer < 2**63 else float(integer)
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text  # an infinite number has no JSON form
    return text
