"""What a call may know of itself, and how it tells of its progress."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

PROGRESS_MESSAGE_MAX_CHARS: Final = 500

Report = Callable[[str, float | None], None]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ToolContext:
    """One call, as its tool sees it: any parameter with this annotation gets it, and no model sees the parameter.

    To test a tool, make one by hand: `ToolContext(run_id="r", call_id="c")`.

    Attributes:
        call_id: unique in the run.
        tool: the name under which the tool was called.
        attempt: the number of the claim under which this call runs; it only grows.
        report: takes progress; must not block.
    """

    run_id: str
    call_id: str
    tenant: str = ""
    tool: str = ""
    attempt: int = 0
    report: Report = field(default=_ignore, repr=False, compare=False)

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt at this call, and no other call's: for services that take one."""
        return f"{self.run_id}:{self.call_id}"

    def progress(self, message: str, fraction: float | None = None) -> None:
        """Tell clients how far the call is. Never waits, and may be called from any thread, as often as you like.

        Clients get the newest message now and then, and the last one for certain; after
        the result nothing more is told.

        Args:
            message: for people; cut after `PROGRESS_MESSAGE_MAX_CHARS`.
            fraction: of the work, from 0 to 1; None where nobody knows.
        """
        # Half of a surrogate pair is no text that could be sent.
        text = str(message)[:PROGRESS_MESSAGE_MAX_CHARS].encode(errors="replace").decode()
        is_known = fraction is not None and not math.isnan(fraction)
        self.report(text, min(max(float(fraction), 0.0), 1.0) if fraction is not None and is_known else None)
