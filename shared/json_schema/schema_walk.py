"""One bounded check of a value against a JSON Schema: counts the work, follows references, collects what is wrong."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from stagebus.shared.json_schema.json_pointer import find_target
from stagebus.shared.json_schema.linear_pattern import LinearPattern, compile_pattern

# Nested schemas, each with a few Python frames: well below the interpreter's limit of 1,000 frames.
DEPTH_MAX: Final = 150
# A value's parts are no longer checked when so many of them have issues.
ISSUES_MAX: Final = 20
# So many different parts are named that could not be decided.
UNCHECKED_MAX: Final = 10
# RE2 needs at most about 3 ns for each instruction of a pattern and each character, which is a step for 500 of them.
_PATTERN_WORK_PER_STEP: Final = 500
# A search that could take longer than some 30 ms is not tried.
_SEARCH_STEPS_MAX: Final = 20_000
_COMPILED_PER_STEP: Final = 4
_CHARS_PER_STEP: Final = 100
# The walk leaves the interpreter to other threads each time it has taken so many steps, which is about 1 ms.
_STEPS_BETWEEN_PAUSES: Final = 1_000
# Not 0, with which the interpreter's lock would mostly come straight back.
_PAUSE_S: Final = 1e-6
# For each key of an object that is sorted, which holds the interpreter's lock.
_SORT_STEPS: Final = 4
_SHOWN_MAX_CHARS: Final = 80

# The way to a value: the way to its container and the key, or None for the whole.
Path = tuple[Any, str | int] | None


class OutOfSteps(Exception):
    """The check needs more work than it may take."""


class Issue(NamedTuple):
    """A problem of the value at a path."""

    path: Path
    message: str


class Place(NamedTuple):
    """The position of a walk: the schema whose keyword is checked, the path of the value, and the depth."""

    schema: Mapping[str, Any]
    path: Path
    depth: int


# Checks one keyword: gets the walk, the keyword's setting, the value and the place.
Keyword = Callable[["SchemaWalk", Any, Any, Place], list[Issue]]


class SchemaWalk:
    """The state of one check.

    A part of the schema that cannot be decided is noted in `unchecked` and counts as satisfied, also inside of `not`.

    Args:
        keywords: the keywords by name; others are ignored, as the specification asks.
        steps_max: the budget; a step is about a microsecond.
        is_in_thread: whether other threads, above all the event loop, should get the interpreter now and then.
    """

    def __init__(self, root: Any, keywords: Mapping[str, Keyword], steps_max: int, *, is_in_thread: bool) -> None:
        self._root = root
        self._keywords = keywords
        self._steps_left = steps_max
        self._pause_at = steps_max - _STEPS_BETWEEN_PAUSES if is_in_thread else -1
        self._patterns: dict[str, LinearPattern] = {}
        self._targets: dict[str, Any] = {}
        self._options: dict[int, frozenset[str]] = {}
        self.unchecked: dict[str, None] = {}  # in order
        self.unchecked_count = 0

    def check(self, schema: Any, value: Any, path: Path, depth: int) -> list[Issue]:
        """Returns what is wrong with a value. A schema that is neither an object nor `false` allows everything.

        Raises:
            OutOfSteps: the budget is used up.
        """
        if not isinstance(schema, Mapping):
            return [Issue(path, "is not allowed")] if schema is False else []
        self.charge(1 + len(schema))
        if depth >= DEPTH_MAX:
            self.leave_unchecked(f"what is nested deeper than {DEPTH_MAX} schemas")
            return []
        issues: list[Issue] = []
        place = Place(schema, path, depth)
        for name, setting in schema.items():
            keyword = self._keywords.get(name)
            if keyword is not None:
                issues += keyword(self, setting, value, place)
        return issues

    def check_each(self, parts: Iterable[tuple[Any, Any, Path]], place: Place) -> list[Issue]:
        """Checks several values, each with its schema and path. Stops when there are enough issues to report."""
        issues: list[Issue] = []
        for schema, value, path in parts:
            issues += self.check(schema, value, path, place.depth + 1)
            if len(issues) >= ISSUES_MAX:
                break
        return issues

    def charge(self, steps: int) -> None:
        """Counts work that is about to be done.

        Raises:
            OutOfSteps: the budget is used up.
        """
        self._steps_left -= steps
        if self._steps_left < 0:
            raise OutOfSteps
        if self._steps_left < self._pause_at:
            self._pause_at = self._steps_left - _STEPS_BETWEEN_PAUSES
            time.sleep(_PAUSE_S)

    def leave_unchecked(self, part: str) -> None:
        """Notes that a part of the schema could not be decided."""
        self.unchecked_count += 1
        if len(self.unchecked) < UNCHECKED_MAX:
            self.unchecked[part] = None

    def matches(self, pattern: str, text: str) -> bool | None:
        """Returns whether a pattern matches a part of a text; None if that cannot be decided, which it notes."""
        compiled = self._patterns.get(pattern) or self._compile(pattern)
        steps = 1 + compiled.size * len(text) // _PATTERN_WORK_PER_STEP
        if not compiled.refusal and steps <= _SEARCH_STEPS_MAX:
            self.charge(steps)
            try:
                return compiled.is_in(text)
            except UnicodeEncodeError:
                pass
        self.leave_unchecked(f"the pattern {shown(pattern)}")
        return None

    def _compile(self, pattern: str) -> LinearPattern:
        self.charge(1 + len(pattern) // _CHARS_PER_STEP)
        compiled = self._patterns[pattern] = compile_pattern(pattern)
        self.charge(compiled.size // _COMPILED_PER_STEP)
        return compiled

    def canonical(self, value: Any, depth: int = 0) -> str:
        """Returns a text that equal JSON values share, and no others. `1` and `1.0` are equal, `1` and `true` are not."""
        self.charge(1)
        if depth >= DEPTH_MAX:
            raise OutOfSteps
        if isinstance(value, str):
            self.charge(len(value) // _CHARS_PER_STEP)
            return repr(value)
        if isinstance(value, Mapping):
            self.charge(_SORT_STEPS * len(value))
            members = [f"{key!r}:{self.canonical(value[key], depth + 1)}" for key in sorted(value, key=str)]
            return f"{{{','.join(members)}}}"
        if isinstance(value, list):
            return f"[{','.join([self.canonical(item, depth + 1) for item in value])}]"
        return repr(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)

    def canonical_options(self, options: list[Any]) -> frozenset[str]:
        """Returns the canonical texts of the options of an `enum`, which are part of the schema."""
        known = self._options.get(id(options))
        if known is None:
            known = self._options[id(options)] = frozenset([self.canonical(option) for option in options])
        return known

    def target_of(self, reference: str) -> Any:
        """Returns the schema that a reference such as `#/$defs/pet` names, or `MISSING`."""
        if reference not in self._targets:
            self.charge(len(reference))
            self._targets[reference] = find_target(self._root, reference)
        return self._targets[reference]


def shown(value: Any) -> str:
    """Returns a value as a message shows it: short, whatever its size."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_MAX_CHARS else f"{value[:_SHOWN_MAX_CHARS]}…")
    if isinstance(value, Mapping):
        return "the object"
    if isinstance(value, list):
        return "the array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > _SHOWN_MAX_CHARS:
        return "the number"  # it has too many digits, more than Python writes
    return repr(value)
