"""The demo model's script: what it is to do, read from the model's name; sans-IO.

    demo                                       answers at the pace of a real model
    demo:delay_ms=0,tokens=500                 a long answer at once
    demo:cut_after=5,fail_times=1              cuts its first answer, gives the second one whole
    demo:status=429,retry_after=2,on=synthesis never answers in synthesis

The name travels through the whole system as any model's does, so each run has a script
of its own and the demo keeps none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

Stage = Literal["extraction", "synthesis"]

MODEL: Final = "demo"
NUMBER_MAX: Final = 10_000_000


class BadScript(ValueError):
    """The model's name asks for what the demo cannot do. The message says what it can."""


@dataclass(frozen=True, slots=True)
class DemoScript:
    """One answer's pace and length, and what goes wrong with it.

    Attributes:
        delay_ms: between two chunks.
        first_token_ms: before the first chunk; `delay_ms` if not set.
        tokens: length of an answer that calls no tool.
        calls: number of parallel calls, whatever the prompt says.
        stall_after: silence after this many chunks.
        cut_after: the connection is cut after this many chunks.
        garbage_after: after this many chunks one that is no JSON.
        error_after: after this many chunks an error object in a chunk's place.
        endless: the answer never ends.
        no_done: the stream ends without `[DONE]`.
        status: this HTTP status instead of an answer.
        retry_after: seconds, as `Retry-After` beside the status.
        fail_times: the trouble befalls only so many requests of the same model and messages.
        on: the trouble befalls only this stage. A request with tools and without their
            results is extraction's.
    """

    delay_ms: int = 30
    first_token_ms: int | None = None
    tokens: int | None = None
    calls: int | None = None
    stall_after: int | None = None
    cut_after: int | None = None
    garbage_after: int | None = None
    error_after: int | None = None
    endless: bool = False
    no_done: bool = False
    status: int | None = None
    retry_after: int | None = None
    fail_times: int | None = None
    on: Literal["extraction", "synthesis", "all"] = "all"

    def is_meant_for(self, stage: Stage) -> bool:
        """Whether the trouble befalls this stage."""
        return self.on in ("all", stage)

    @property
    def is_trouble(self) -> bool:
        """Whether anything is to go wrong."""
        return self != self.without_trouble()

    def without_trouble(self) -> "DemoScript":
        """The same pace and length, and nothing goes wrong."""
        return DemoScript(self.delay_ms, self.first_token_ms, self.tokens, self.calls)


def parse_script(model: str) -> DemoScript:
    """The script in a model's name. A name that does not begin with `demo:` is served plainly.

    Raises:
        BadScript: an unknown key, or a value that does not fit.
    """
    name, _, text = model.partition(":")
    if name != MODEL or not text:
        return DemoScript()
    values: dict[str, Any] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        key = key.strip()
        if key not in _PARSERS:
            raise BadScript(f"the demo knows no key {key[:64]!r}; it knows {', '.join(sorted(_PARSERS))}")
        values[key] = _PARSERS[key](key, value.strip())
    return replace(DemoScript(), **values)


def _number(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) > NUMBER_MAX:
        raise BadScript(f"the demo's key {key!r} takes a whole number of at most {NUMBER_MAX}")
    return int(value)


def _status(key: str, value: str) -> int:
    if not value.isdecimal() or not 400 <= int(value) <= 599:  # noqa: PLR2004 - HTTP's errors
        raise BadScript(f"the demo's key {key!r} takes an HTTP error status, 400 to 599")
    return int(value)


def _flag(key: str, value: str) -> bool:
    if value not in ("", "0", "1"):
        raise BadScript(f"the demo's key {key!r} takes 1 or 0")
    return value != "0"


def _stage(key: str, value: str) -> str:
    if value not in ("extraction", "synthesis", "all"):
        raise BadScript(f"the demo's key {key!r} takes extraction, synthesis or all")
    return value


_PARSERS: Final[Mapping[str, Callable[[str, str], Any]]] = {field.name: _number for field in fields(DemoScript)} | {
    "endless": _flag,
    "no_done": _flag,
    "status": _status,
    "on": _stage,
}
