"""Validates data against a third party's JSON Schema, in a bounded time.

    validator = SchemaValidator({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}})
    verdict = await validator.validate({"age": -1})
    verdict.errors      # ("age: -1 is less than the minimum of 0",)
    verdict.unchecked   # ()

Both the schema and the data are hostile: patterns are matched with RE2, each keyword counts its work, and the depth is
limited. A small check runs at once; one that takes longer starts again in a thread, which leaves the interpreter to the
event loop every millisecond. A check that needs more than `STEPS_MAX` steps, or is not done after `WAIT_MAX_S`, is given up.

What could not be decided counts as valid and is named in `unchecked`. The caller decides what that means.

`jsonschema` (4.26) backtracks in patterns, compares the items of `uniqueItems` pairwise, and has no limit of work.
`jsonschema-rs` (0.60) matches patterns in linear time, but has no limit of work either, and holds the interpreter's lock.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from stagebus.shared.json_schema.schema_keywords import KEYWORDS
from stagebus.shared.json_schema.schema_walk import Issue, OutOfSteps, Path, SchemaWalk

# Steps in the event loop, about 2 ms: enough for an object with some hundred fields.
INLINE_STEPS_MAX: Final = 1_000
# Steps of one check, some 0.2 s in a thread.
STEPS_MAX: Final = 200_000
# A check waits at most this long for the checks before it.
WAIT_MAX_S: Final = 2.0
ERRORS_MAX: Final = 10
ERROR_MAX_CHARS: Final = 300

# One thread, so that all long checks together take at most half of the interpreter's time.
_THREAD: Final = ThreadPoolExecutor(1, "json-schema")


class Verdict(NamedTuple):
    """The result of a check.

    Attributes:
        errors: at most `ERRORS_MAX` short texts such as `pets.0.name: 5 is not of type 'string'`; none if the data fits.
        unchecked: the parts of the schema that could not be decided.
    """

    errors: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


_GIVEN_UP: Final = (OutOfSteps, RecursionError)
_TOO_LARGE: Final = Verdict(unchecked=("the whole: the check takes too long",))


class SchemaValidator:
    """A JSON Schema (2020-12) of a third party. Nothing in it is an error: what is malformed is ignored."""

    def __init__(self, schema: Any) -> None:
        """`schema` is JSON as Python has it. It must not change afterwards."""
        self._schema = schema

    async def validate(self, data: Any) -> Verdict:
        """Checks JSON data without holding the event loop up."""
        try:
            return self._check(data, INLINE_STEPS_MAX, is_in_thread=False)
        except _GIVEN_UP:
            pass
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(WAIT_MAX_S):
                return await loop.run_in_executor(_THREAD, self.validate_now, data)
        except TimeoutError:
            return _TOO_LARGE

    def validate_now(self, data: Any) -> Verdict:
        """Checks JSON data in the calling thread, which must not be that of an event loop."""
        try:
            return self._check(data, STEPS_MAX, is_in_thread=True)
        except _GIVEN_UP:
            return _TOO_LARGE

    def _check(self, data: Any, steps_max: int, *, is_in_thread: bool) -> Verdict:
        walk = SchemaWalk(self._schema, KEYWORDS, steps_max, is_in_thread=is_in_thread)
        issues = walk.check(self._schema, data, None, 0)
        return Verdict(tuple(map(_text_of, issues[:ERRORS_MAX])), tuple(walk.unchecked))


def _text_of(issue: Issue) -> str:
    where = ".".join(str(key)[:ERROR_MAX_CHARS] for key in reversed(list(_keys(issue.path))))
    text = f"{where}: {issue.message}" if where else issue.message
    return text if len(text) <= ERROR_MAX_CHARS else f"{text[:ERROR_MAX_CHARS]}…"


def _keys(path: Path) -> Iterator[str | int]:
    while path is not None:
        path, key = path
        yield key
