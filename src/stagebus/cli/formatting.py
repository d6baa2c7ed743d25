"""Formats texts, durations, costs and token counts for one line of output."""

from typing import Any, Final

from stagebus.shared.runtime.sanitize import sanitize

EXCERPT_MAX_CHARS: Final = 160
_MINUTE_S: Final = 60


def excerpt(text: str) -> str:
    """Return `text` on one line, cut to `EXCERPT_MAX_CHARS`."""
    line = sanitize(" ".join(text.split()))
    return line if len(line) <= EXCERPT_MAX_CHARS else line[: EXCERPT_MAX_CHARS - 1] + "…"


def seconds(ms: float | None) -> str:
    """Format a duration for people; empty if it is unknown."""
    if ms is None:
        return ""
    if round(ms / 1000, 1) < _MINUTE_S:
        return f"{ms / 1000:.1f} s"
    minutes, remaining_s = divmod(round(ms / 1000), _MINUTE_S)
    hours, minutes_in_hour = divmod(minutes, 60)
    return f"{hours} h {minutes_in_hour:02d} min" if hours else f"{minutes} min {remaining_s:02d} s"


def money(usage: dict[str, Any] | None) -> str:
    """Format the cost; empty if it is unknown."""
    cost = (usage or {}).get("cost")
    if cost is None:
        return ""
    decimals = 2 if cost["amount"] >= 1 else 5
    return f"{cost['amount']:.{decimals}f} {cost['currency']}"


def tokens(usage: dict[str, Any] | None) -> str:
    """Format the total token count; empty if it is unknown."""
    count = (usage or {}).get("total_tokens")
    about = "about " if (usage or {}).get("estimated") else ""
    return "" if count is None else f"{about}{count} token{'' if count == 1 else 's'}"
