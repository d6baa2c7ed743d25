"""Writes durations for people."""

from typing import Final

_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
_DAY_MS: Final = 24 * _HOUR_MS


def spoken(ms: float) -> str:
    """Returns a duration in at most two units, such as `2.0 s`, `3 min 5 s` or `1 d 2 h`."""
    ms = max(0, ms)
    if round(ms / 1000, 1) < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{ms / 1000:.1f} s"
    for unit_ms, unit, part_ms, part in (
        (_DAY_MS, "d", _HOUR_MS, "h"),
        (_HOUR_MS, "h", _MINUTE_MS, "min"),
        (_MINUTE_MS, "min", 1000, "s"),
    ):
        rounded = round(ms / part_ms) * part_ms
        if rounded >= unit_ms:
            whole, rest = divmod(rounded, unit_ms)
            return f"{whole} {unit} {rest // part_ms} {part}"
    raise AssertionError("a duration of 60 s or more has minutes")
