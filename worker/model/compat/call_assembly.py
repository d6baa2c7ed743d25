r"""Fragments of tool calls, put together as the model meant them; sans-IO.

    {"index":0,"id":"call_a","function":{"name":"get_weather","arguments":""}}
    {"index":0,"function":{"arguments":"{\"city\":"}}
    {"index":0,"function":{"arguments":"\"Paris\"}"}}

So it should be. Servers leave out the index or give every call index 0, leave out the
id, repeat it or make up a new one for each fragment, split the name, repeat it or send
it last, send the arguments whole, as an object, encoded twice, or said twice. So no single field says where
a call begins. The fragments are kept and judged together at the end, by one question:
can this fragment be more of that call? A call whose arguments are a whole JSON object
takes no further ones.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson

# The index of the one call of the `function_call` that came before `tool_calls`.
LEGACY_INDEX: Final = -1

_NO_ARGUMENTS: Final = "{}"
# How else "none" is said; a list where PHP encoded an empty map.
_NOTHING: Final = ("", "null", "[]", '""')
_ARGUMENTS: Final = ("arguments", "parameters", "input")
# What a provider puts beside a call for itself: Gemini's thought_signature.
_NO_EXTRA: Final[Mapping[str, Any]] = MappingProxyType({})
# So many pieces that grow are no chance, even where they would make JSON one behind the other.
_GROWING_MIN: Final = 3
_MARK: Final = re.compile(r'["{}\\]')


class CallFragment(NamedTuple):
    """A piece of a call, as one delta brought it. Fields without a value are empty."""

    call_index: int | None
    id: str
    name: str
    arguments: str
    place: int = 0  # in the delta's list
    extra_content: Mapping[str, Any] = _NO_EXTRA


class ParsedCall(NamedTuple):
    """A whole call; its id is as the provider sent it, so it may be empty or not its own."""

    id: str
    name: str
    arguments: str
    extra_content: Mapping[str, Any] = _NO_EXTRA


def parse_call_fragments(delta: Mapping[str, Any]) -> list[CallFragment]:
    """What a delta says of calls."""
    entries = delta.get("tool_calls")
    if isinstance(entries, dict):
        entries = [entries]
    if isinstance(entries, list):
        return [_parse(entry, place) for place, entry in enumerate(entries) if isinstance(entry, dict)]
    legacy = delta.get("function_call")
    if isinstance(legacy, dict):
        return [CallFragment(LEGACY_INDEX, "", _text(legacy.get("name")), arguments_text(legacy.get("arguments")))]
    return []


def _parse(entry: Mapping[str, Any], place: int) -> CallFragment:
    function = entry.get("function")
    if not isinstance(function, dict):
        function = entry
    arguments = next((value for name in _ARGUMENTS if (value := function.get(name)) is not None), None)
    extra = entry.get("extra_content")
    return CallFragment(
        call_index=_index(entry.get("index")),
        id=_text(entry.get("id")),
        name=_text(function.get("name")),
        arguments=arguments_text(arguments),
        place=place,
        extra_content=extra if isinstance(extra, dict) else _NO_EXTRA,
    )


def _index(value: object) -> int | None:
    """A call's place; some servers say -1 where they know none."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def arguments_text(arguments: object) -> str:
    """Arguments as JSON text: some servers send the object itself."""
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    try:
        return orjson.dumps(arguments).decode()
    except TypeError:  # half of a surrogate pair, or a number beyond 64 bits
        return json.dumps(arguments)


def assemble_calls(fragments: Sequence[CallFragment], tool_names: Collection[str] = ()) -> list[ParsedCall]:
    """The calls that the fragments make up, in the model's order; one without a name is none.

    Args:
        fragments: of one answer, as they came.
        tool_names: what the model was offered; tells a name in pieces from two names.
    """
    if any(fragment.call_index != LEGACY_INDEX for fragment in fragments):
        # A server that sends both forms means one call by both.
        fragments = [fragment for fragment in fragments if fragment.call_index != LEGACY_INDEX]
    drafts = _Drafts(frozenset(tool_names), ids_churn=_ids_churn(fragments))
    for fragment in fragments:
        drafts.take(fragment)
    return [
        ParsedCall(draft.id, draft.name, draft.final_arguments(), draft.extra_content)
        for draft in drafts.in_order()
        if draft.name
    ]


def _ids_churn(fragments: Iterable[CallFragment]) -> bool:
    """Whether ids say nothing, as one changes in the middle of a call's arguments."""
    id_by_index: dict[int | None, str] = {}
    for fragment in fragments:
        if not fragment.id:
            continue
        before = id_by_index.get(fragment.call_index, fragment.id)
        arguments = _unwrapped(fragment.arguments).lstrip()
        if before != fragment.id and arguments and not arguments.startswith("{"):
            return True
        id_by_index[fragment.call_index] = fragment.id
    return False


class _Draft:
    """A call that may still grow."""

    def __init__(self, fragment: CallFragment) -> None:
        self.index = fragment.call_index
        self.id = fragment.id
        self.name = fragment.name
        self.extra_content = dict(fragment.extra_content)
        self.has_arguments = False
        self._pieces: list[str] = []
        self._braces = _Braces()
        self._is_growing = True  # whether each piece says all of the one before, and more
        self._last_braces = _Braces()  # of the last piece alone, as long as they grow
        self._append(fragment.arguments)

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are an object that has ended."""
        if not self._is_growing or len(self._pieces) == 1:
            return self._braces.are_closed
        return self._last_braces.are_closed and (self._braces.are_closed or self.is_growing)

    @property
    def is_growing(self) -> bool:
        """Whether the pieces certainly say all of it so far, each."""
        return self._is_growing and len(self._pieces) >= _GROWING_MIN

    def arguments(self) -> str:
        return self._pieces[-1] if self.is_growing and self.is_whole else "".join(self._pieces)

    def add(self, fragment: CallFragment, name: str) -> None:
        self.id = self.id or fragment.id
        self.name = name
        self.extra_content |= fragment.extra_content
        if self.is_whole:
            if fragment.arguments.isspace() or fragment.arguments == self.arguments():
                return
            if fragment.arguments:
                # An empty object, which only stood for the arguments to come.
                self._pieces = []
                self._braces = _Braces()
                self._is_growing = True
        self._append(fragment.arguments)

    def final_arguments(self) -> str:
        text = self.arguments()
        if text.strip() in _NOTHING:
            return _NO_ARGUMENTS
        last = self._pieces[-1]
        if text.lstrip().startswith('"'):
            return _unwrapped(text)
        if self._is_growing and not _is_object(text) and _is_object(last):
            return last
        return text

    def _append(self, arguments: str) -> None:
        if not self._pieces:
            arguments = _unwrapped(arguments)
        if arguments:
            self._is_growing = self._is_growing and arguments.startswith(self._pieces[-1] if self._pieces else "")
            if self._is_growing:
                self._last_braces = _Braces()
                self._last_braces.feed(arguments)
            self._pieces.append(arguments)
            self._braces.feed(arguments)
            self.has_arguments = self.has_arguments or not arguments.isspace()


class _Braces:
    """Where a JSON text stands that comes in pieces; linear in its length, however it is cut."""

    def __init__(self) -> None:
        self.are_closed = False
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False  # the next character is no mark

    def feed(self, piece: str) -> None:
        start = int(self._is_escaped)
        self._is_escaped = False
        while match := _MARK.search(piece, start):
            mark, start = match[0], match.end()
            if mark == '"':
                self._is_in_string = not self._is_in_string
            elif mark == "\\":
                self._is_escaped = start == len(piece)
                start += 1
            elif not self._is_in_string:
                self._depth += 1 if mark == "{" else -1
                self.are_closed = self._depth <= 0


class _Drafts:
    """The calls so far, and which of them a fragment belongs to."""

    def __init__(self, tool_names: frozenset[str], *, ids_churn: bool) -> None:
        self._tool_names = tool_names
        self._ids_churn = ids_churn
        self._drafts: list[_Draft] = []
        self._by_index: dict[int, _Draft] = {}
        self._by_id: dict[str, _Draft] = {}

    def take(self, fragment: CallFragment) -> None:
        draft = self._candidate(fragment)
        if draft is not None and draft.is_whole and fragment.arguments and self._last_goes_on(fragment):
            draft = self._drafts[-1]
        if draft is not None and self._continues(draft, fragment):
            draft.add(fragment, self._joined(draft.name, fragment.name))
        else:
            draft = _Draft(fragment)
            self._drafts.append(draft)
        if fragment.call_index is not None:
            self._by_index[fragment.call_index] = draft
        if draft.id:
            self._by_id[draft.id] = draft

    def in_order(self) -> list[_Draft]:
        indexes = [draft.index for draft in self._drafts]
        if None in indexes or len(set(indexes)) < len(indexes):
            return self._drafts
        return sorted(self._drafts, key=lambda draft: draft.index or 0)

    def _candidate(self, fragment: CallFragment) -> _Draft | None:
        """The one call that the fragment may be more of."""
        if fragment.call_index is not None and fragment.call_index in self._by_index:
            return self._by_index[fragment.call_index]
        known = self._by_id.get(fragment.id)
        last = self._drafts[-1] if self._drafts else None
        if fragment.call_index is None:
            return known or last
        # A new index without a name of its own: the id, or the lack of all indexes so far, says more.
        if fragment.name or last is None:
            return None
        if known is not None:
            return known
        return last if last.index is None or self._last_goes_on(fragment) else None

    def _last_goes_on(self, fragment: CallFragment) -> bool:
        """Whether the last call may go on under another index than it began at."""
        last = self._drafts[-1]
        return not fragment.name and not fragment.id and bool(last.name) and not last.is_whole

    def _continues(self, draft: _Draft, fragment: CallFragment) -> bool:
        is_same_id = bool(fragment.id) and fragment.id == draft.id
        is_other_id = bool(fragment.id and draft.id) and not is_same_id and not self._ids_churn
        if draft.is_whole:
            return self._continues_whole(draft, fragment, is_same_id=is_same_id, is_other_id=is_other_id)
        if not fragment.name or not draft.name or is_same_id:
            return True
        if draft.has_arguments:
            return fragment.name == draft.name
        return not is_other_id and not self._begins_by_name(draft, fragment)

    def _continues_whole(self, draft: _Draft, fragment: CallFragment, *, is_same_id: bool, is_other_id: bool) -> bool:
        if is_other_id:
            return False
        is_nameless = is_same_id or not fragment.name
        if not fragment.arguments.strip():
            return is_nameless or not draft.name or not self._begins_by_name(draft, fragment)
        if fragment.arguments == draft.arguments():
            return is_nameless or draft.is_growing
        return is_nameless and draft.arguments().strip() == _NO_ARGUMENTS

    def _begins_by_name(self, draft: _Draft, fragment: CallFragment) -> bool:
        """Whether a name after a name, with no new arguments between, is a second call's."""
        if fragment.place > 0:
            return True
        if fragment.name == draft.name or draft.name + fragment.name in self._tool_names:
            return False
        if self._tool_names:
            return draft.name in self._tool_names and fragment.name in self._tool_names
        return draft.is_whole or fragment.call_index is None

    def _joined(self, before: str, name: str) -> str:
        """A name and what came after it: a further piece, the same again, or all of it so far."""
        if before + name in self._tool_names:
            return before + name
        return name if name.startswith(before) else before + name


def _unwrapped(arguments: str) -> str:
    """Arguments that were encoded twice, a JSON text in a JSON string, as they were meant; others as they are."""
    if not arguments.lstrip().startswith('"'):
        return arguments
    try:
        inner = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    return inner if isinstance(inner, str) and _is_object(inner) else arguments


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
