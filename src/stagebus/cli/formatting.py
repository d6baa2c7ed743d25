"""How texts of runs are shown on one line."""

from typing import Any, Final

from stagebus.shared.runtime.sanitize import sanitize

EXCERPT_MAX_CHARS: Final = 160
_MINUTE_S: Final = 60


def excerpt(text: str) -> str:
    """`text` on one line, cut where it is long."""
    line = sanitize(" ".join(text.split()))
    return line if len(line) <= EXCERPT_MAX_CHARS else line[: EXCERPT_MAX_CHARS - 1] + "…"


def seconds(ms: float | None) -> str:
    """A duration as a person reads it; empty where it is not known."""
    if ms is None:
        return ""
    if round(ms / 1000, 1) < _MINUTE_S:
        return f"{ms / 1000:.1f} s"
    minutes, rest = divmod(round(ms / 1000), _MINUTE_S)
    hours, minutes_of_it = divmod(minutes, 60)
    return f"{hours} h {minutes_of_it:02d} min" if hours else f"{minutes} min {rest:02d} s"


def money(usage: dict[str, Any] | None) -> str:
    """What it cost; empty where that is not known."""
    cost = (usage or {}).get("cost")
    if cost is None:
        return ""
    decimals = 2 if cost["amount"] >= 1 else 5
    return f"{cost['amount']:.{decimals}f} {cost['currency']}"


def tokens(usage: dict[str, Any] | None) -> str:
    """How many tokens; empty where nobody counted."""
    count = (usage or {}).get("total_tokens")
    return "" if count is None else f"{count} token{'' if count == 1 else 's'}"
