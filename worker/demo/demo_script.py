"""Parses the demo model's script from the model's name; sans-IO.

    demo                                       answers at the pace of a real model
    demo:delay_ms=0,tokens=500                 a long answer without delay
    demo:cut_after=5,fail_times=1              cuts its first answer, completes the second one
    demo:status=429,retry_after=2,on=synthesis always fails in synthesis

The name passes through the whole system like the name of any model. So each run has a script of its own, and the
demo stores none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

Stage = Literal["extraction", "synthesis"]

MODEL: Final = "demo"
NUMBER_MAX: Final = 10_000_000


class BadScript(ValueError):
    """The model's name contains an unknown key or an invalid value. The message names the valid ones."""


@dataclass(frozen=True, slots=True)
class DemoScript:
    """The pace, the length and the faults of an answer.

    Attributes:
        delay_ms: delay between two chunks.
        first_token_ms: delay before the first chunk; `delay_ms` if not set.
        tokens: length of an answer without tool calls.
        calls: number of parallel calls, independent of the prompt.
        stall_after: sends nothing more after this many chunks.
        cut_after: cuts the connection after this many chunks.
        garbage_after: sends invalid JSON after this many chunks.
        error_after: sends an error object after this many chunks.
        endless: the answer never ends.
        no_done: the stream ends without `[DONE]`.
        reasoning: the model reasons first, and refuses its calls if they come back without their reasoning.
        status: the HTTP status to send instead of an answer.
        retry_after: the seconds in the `Retry-After` header beside the status.
        fail_times: how many requests with the same model and messages have the faults; all if not set.
        on: only this stage has the faults. A request with tools and without results at the end
            belongs to extraction.
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
    reasoning: bool = False

    def applies_to(self, stage: Stage) -> bool:
        """Returns whether this stage has the faults."""
        return self.on in ("all", stage)

    @property
    def has_faults(self) -> bool:
        """True if the script has any faults."""
        return self != self.without_faults()

    def without_faults(self) -> "DemoScript":
        """Returns the script with the same pace and length, but without faults."""
        return DemoScript(self.delay_ms, self.first_token_ms, self.tokens, self.calls, reasoning=self.reasoning)


def parse_script(model: str) -> DemoScript:
    """Parses the script in a model's name. A name that does not begin with `demo:` has the default script.

    Raises:
        BadScript: a key is unknown or a value is invalid.
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
    "reasoning": _flag,
    "status": _status,
    "on": _stage,
}
