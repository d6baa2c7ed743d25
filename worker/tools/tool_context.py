"""`ToolContext`: the facts of a call that its tool may use, and the way to report progress."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

PROGRESS_MESSAGE_MAX_CHARS: Final = 500

Report = Callable[[str, float | None], None]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The context of one call. A parameter with this annotation receives it; the model does not see the parameter.

    Create one in a tool's test: `ToolContext(run_id="r", call_id="c")`.

    Attributes:
        call_id: unique in the run.
        tool: the name by which the model called the tool.
        attempt: the number of the attempt that runs the call; it only grows.
        call_token: of a tool with `deferred=True`: lets its holder give the call's result, once, and do nothing else. Equal
            in all attempts at this call. Empty without STAGEBUS_SECRET.
        result_url: of a tool with `deferred=True`: the URL to POST that result to, with the token in it if there is one.
            Empty without STAGEBUS_PUBLIC_URL.
        user: the person within the tenant whose run it is; empty if none is known.
        metadata: the run's, as its client gave it.
        report: receives progress; must not block.
    """

    run_id: str
    call_id: str
    tenant: str = ""
    tool: str = ""
    attempt: int = 0
    call_token: str = field(default="", repr=False)
    result_url: str = field(default="", repr=False)
    user: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    report: Report = field(default=_ignore, repr=False, compare=False)

    @property
    def idempotency_key(self) -> str:
        """A key for services that accept one. It is equal in all attempts at this call and different for every other call."""
        return f"{self.run_id}:{self.call_id}"

    def progress(self, message: str, fraction: float | None = None) -> None:
        """Reports progress to clients. Never blocks; may be called from any thread and as often as you like.

        Clients get the newest message at intervals, and the last one before the result. Reports after the result are
        ignored.

        Args:
            message: text for people; cut after `PROGRESS_MESSAGE_MAX_CHARS`.
            fraction: finished part of the work, from 0 to 1; None if unknown.
        """
        # A lone surrogate cannot be encoded as UTF-8.
        text = str(message)[:PROGRESS_MESSAGE_MAX_CHARS].encode(errors="replace").decode()
        is_known = fraction is not None and not math.isnan(fraction)
        self.report(text, min(max(float(fraction), 0.0), 1.0) if fraction is not None and is_known else None)
