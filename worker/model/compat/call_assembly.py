r"""Assembles tool calls from their fragments; sans-IO.

    {"index":0,"id":"call_a","function":{"name":"get_weather","arguments":""}}
    {"index":0,"function":{"arguments":"{\"city\":"}}
    {"index":0,"function":{"arguments":"\"Paris\"}"}}

This is the form in the specification. In practice servers omit the index or give every call index 0; they
omit the id, repeat it or invent a new one for each fragment; they split the name, repeat it or send it last;
they send the arguments whole, as an object, encoded twice or twice in a row. So no single field says where
a call begins. All fragments are kept and assembled at the end of the answer, with two questions for each one:
which call may it belong to (`_candidate`), and does it belong there or begin a new call (`_belongs_to`)?
Each question has a table of rules; the first rule that applies decides.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import orjson

from stagebus.worker.model.compat.call_fragments import LEGACY_INDEX, CallFragment, ParsedCall

_NO_ARGUMENTS: Final = "{}"
# Other ways to say "no arguments". A list is how PHP encodes an empty map.
_EMPTY_ARGUMENTS: Final = ("", "null", "[]", '""')
# With this many pieces, each of which starts with the one before, the arguments are cumulative, even if the pieces
# would also be JSON when concatenated. Fewer may be a coincidence.
_CUMULATIVE_MIN: Final = 3
_MARK: Final = re.compile(r'["{}\\]')


def assemble_calls(fragments: Sequence[CallFragment], tool_names: Collection[str] = ()) -> list[ParsedCall]:
    """Returns the calls that the fragments form, in the model's order. Calls without a name are dropped.

    Args:
        fragments: all fragments of one answer, in order of arrival.
        tool_names: the tools that the model was offered. They distinguish a split name from two names.
    """
    if any(fragment.call_index != LEGACY_INDEX for fragment in fragments):
        # A server that sends both forms means one call by both.
        fragments = [fragment for fragment in fragments if fragment.call_index != LEGACY_INDEX]
    assembler = _CallAssembler(frozenset(tool_names), ids_are_unreliable=_ids_change_within_calls(fragments))
    for fragment in fragments:
        assembler.add(fragment)
    return [
        ParsedCall(call.id, call.name, call.final_arguments(), call.extra_content)
        for call in assembler.in_order()
        if call.name
    ]


def _ids_change_within_calls(fragments: Iterable[CallFragment]) -> bool:
    """Returns whether an id changes in the middle of a call's arguments, so that ids identify nothing."""
    id_by_index: dict[int | None, str] = {}
    for fragment in fragments:
        if not fragment.id:
            continue
        before = id_by_index.get(fragment.call_index, fragment.id)
        arguments = _decode_twice_encoded(fragment.arguments).lstrip()
        if before != fragment.id and arguments and not arguments.startswith("{"):
            return True
        id_by_index[fragment.call_index] = fragment.id
    return False


class _OpenCall:
    """A call that may still grow."""

    def __init__(self, fragment: CallFragment) -> None:
        self.index = fragment.call_index
        self.id = fragment.id
        self.name = fragment.name
        self.extra_content = dict(fragment.extra_content)
        self.has_arguments = False
        self._pieces: list[str] = []
        self._scanner = _BraceScanner()
        self._may_be_cumulative = True  # so far each piece repeats the one before and adds to it
        self._last_piece_scanner = _BraceScanner()  # of the last piece alone, while they may be cumulative
        self._append(fragment.arguments)

    @property
    def is_complete(self) -> bool:
        """True if the arguments are an object that has been closed."""
        if not self._may_be_cumulative or len(self._pieces) == 1:
            return self._scanner.is_closed
        return self._last_piece_scanner.is_closed and (self._scanner.is_closed or self.is_cumulative)

    @property
    def is_cumulative(self) -> bool:
        """True if each piece certainly holds all of the arguments so far."""
        return self._may_be_cumulative and len(self._pieces) >= _CUMULATIVE_MIN

    def arguments(self) -> str:
        return self._pieces[-1] if self.is_cumulative and self.is_complete else "".join(self._pieces)

    def add(self, fragment: CallFragment, name: str) -> None:
        self.id = self.id or fragment.id
        self.name = name
        self.extra_content |= fragment.extra_content
        if self.is_complete:
            if fragment.arguments.isspace() or fragment.arguments == self.arguments():
                return
            if fragment.arguments:
                # The arguments so far are an empty object, a placeholder for these.
                self._pieces = []
                self._scanner = _BraceScanner()
                self._may_be_cumulative = True
        self._append(fragment.arguments)

    def final_arguments(self) -> str:
        text = self.arguments()
        if text.strip() in _EMPTY_ARGUMENTS:
            return _NO_ARGUMENTS
        last = self._pieces[-1]
        if text.lstrip().startswith('"'):
            return _decode_twice_encoded(text)
        if self._may_be_cumulative and not _is_object(text):
            # Pieces that repeat by chance look cumulative: the reading that is an object is the right one.
            return next((reading for reading in (last, "".join(self._pieces)) if _is_object(reading)), text)
        return text

    def _append(self, arguments: str) -> None:
        if not self._pieces:
            arguments = _decode_twice_encoded(arguments)
        if arguments:
            last_piece = self._pieces[-1] if self._pieces else ""
            self._may_be_cumulative = self._may_be_cumulative and arguments.startswith(last_piece)
            if self._may_be_cumulative:
                self._last_piece_scanner = _BraceScanner()
                self._last_piece_scanner.feed(arguments)
            self._pieces.append(arguments)
            self._scanner.feed(arguments)
            self.has_arguments = self.has_arguments or not arguments.isspace()


class _BraceScanner:
    """Counts the braces of a JSON text that arrives in pieces, in linear time however it is split."""

    def __init__(self) -> None:
        self.is_closed = False
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False  # the next character follows a backslash

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
                self.is_closed = self._depth <= 0


class _CallAssembler:
    """Decides which call each fragment belongs to."""

    def __init__(self, tool_names: frozenset[str], *, ids_are_unreliable: bool) -> None:
        self._tool_names = tool_names
        self._ids_are_unreliable = ids_are_unreliable
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}
        self._by_id: dict[str, _OpenCall] = {}

    def add(self, fragment: CallFragment) -> None:
        call = self._candidate(fragment)
        if call is not None and self._belongs_to(call, fragment):
            call.add(fragment, self._joined_name(call.name, fragment.name))
        else:
            call = _OpenCall(fragment)
            self._calls.append(call)
        if fragment.call_index is not None:
            self._by_index[fragment.call_index] = call
        if call.id:
            self._by_id[call.id] = call

    def in_order(self) -> list[_OpenCall]:
        indexes = [call.index for call in self._calls]
        if None in indexes or len(set(indexes)) < len(indexes):
            return self._calls
        return sorted(self._calls, key=lambda call: call.index or 0)

    def _candidate(self, fragment: CallFragment) -> _OpenCall | None:
        """Returns the one call that the fragment may belong to, or None if it begins a new call."""
        call = self._call_by_index_or_id(fragment)
        if call is not None and call.is_complete and fragment.arguments and self._continues_last(fragment):
            return self._calls[-1]  # the call at that index takes no more arguments, and the last one does
        return call

    def _call_by_index_or_id(self, fragment: CallFragment) -> _OpenCall | None:
        """Applies the first of these rules.

        | the fragment's index | and                                                          | candidate     |
        |----------------------|--------------------------------------------------------------|---------------|
        | of a call            |                                                              | that call     |
        | none                 | it has the id of a call                                      | that call     |
        | none                 |                                                              | the last call |
        | new                  | it has a name, or there is no call yet                       | none          |
        | new                  | it has the id of a call                                      | that call     |
        | new                  | the last call has no index                                   | the last call |
        | new                  | it has neither name nor id, and the last call is not complete | the last call |
        | new                  |                                                              | none          |
        """
        if fragment.call_index is not None and fragment.call_index in self._by_index:
            return self._by_index[fragment.call_index]
        known = self._by_id.get(fragment.id)
        last = self._calls[-1] if self._calls else None
        if fragment.call_index is None:
            return known or last
        if fragment.name or last is None:
            return None
        if known is not None:
            return known
        return last if last.index is None or self._continues_last(fragment) else None

    def _continues_last(self, fragment: CallFragment) -> bool:
        """Returns whether a fragment without name and id may continue the last call, whatever its index."""
        last = self._calls[-1]
        return not fragment.name and not fragment.id and bool(last.name) and not last.is_complete

    def _belongs_to(self, call: _OpenCall, fragment: CallFragment) -> bool:
        """Returns whether the fragment belongs to its candidate. Otherwise it begins a new call.

        | the call's arguments  | the fragment                             | belongs to the call                     |
        |-----------------------|------------------------------------------|-----------------------------------------|
        | complete              |                                          | see `_belongs_to_complete`              |
        | open                  | nameless, or the call has no name yet    | yes                                     |
        | open, with content    | has a name                               | if it is the call's name                |
        | open, without content | has another id                           | no                                      |
        | open, without content | has a name                               | unless it begins a call by its name     |

        "Nameless" is a fragment without a name, or with the id of the call.
        """
        is_same_id = bool(fragment.id) and fragment.id == call.id
        is_other_id = bool(fragment.id and call.id) and not is_same_id and not self._ids_are_unreliable
        is_nameless = is_same_id or not fragment.name
        if call.is_complete:
            return not is_other_id and self._belongs_to_complete(call, fragment, is_nameless=is_nameless)
        if is_nameless or not call.name:
            return True
        if call.has_arguments:
            return fragment.name == call.name
        return not is_other_id and not self._name_begins_call(call, fragment)

    def _belongs_to_complete(self, call: _OpenCall, fragment: CallFragment, *, is_nameless: bool) -> bool:
        """Returns whether the fragment belongs to a call whose arguments are complete. Its id is not another one.

        | the fragment's arguments | belongs to the call                                                          |
        |--------------------------|------------------------------------------------------------------------------|
        | empty                    | if nameless, or the call has no name yet, or unless it begins a call by name |
        | the same again           | if nameless, or the arguments are cumulative                                 |
        | others                   | if nameless, and the call's "{}" was a placeholder for them                  |
        """
        if not fragment.arguments.strip():
            return is_nameless or not call.name or not self._name_begins_call(call, fragment)
        if fragment.arguments == call.arguments():
            return is_nameless or call.is_cumulative
        return is_nameless and call.arguments().strip() == _NO_ARGUMENTS

    def _name_begins_call(self, call: _OpenCall, fragment: CallFragment) -> bool:
        """Returns whether a name that follows a call's name, without new arguments between, begins a second call.

        | the fragment                                                  | begins a call                          |
        |---------------------------------------------------------------|----------------------------------------|
        | is not the first in its delta                                 | yes                                    |
        | repeats the call's name, or completes it to a tool's name     | no                                     |
        | has another name, and the tools are known                     | if both names are tools                |
        | has another name                                              | if the call is complete, or no index   |
        """
        if fragment.place > 0:
            return True
        if fragment.name == call.name or call.name + fragment.name in self._tool_names:
            return False
        if self._tool_names:
            return call.name in self._tool_names and fragment.name in self._tool_names
        return call.is_complete or fragment.call_index is None

    def _joined_name(self, before: str, name: str) -> str:
        """Joins two parts of a name. The second is a further piece, a repetition, or the whole name so far."""
        if before + name in self._tool_names:
            return before + name
        return name if name.startswith(before) else before + name


def _decode_twice_encoded(arguments: str) -> str:
    """Decodes arguments that are a JSON object inside a JSON string, and returns any other text unchanged."""
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
