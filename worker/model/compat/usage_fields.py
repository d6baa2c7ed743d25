"""Reads token counts from the usage objects of all providers; sans-IO.

{"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}}    OpenAI
{"input_tokens": 9, "output_tokens": 1}
{"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 8}                     DeepSeek
{"x_groq": {"usage": {…}}}                                                                     Groq
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stagebus.shared.domain.usage import Usage

_COUNT_MAX: Final = 10**9  # no request has so many; sums over all runs stay within Redis's 64 bits
_NAMES_MAX: Final = 64  # of a merged object, which each further one is compared with
_COUNT_FIELDS: Final = (
    ("prompt_tokens", "input_tokens"),
    ("completion_tokens", "output_tokens"),
    ("total_tokens", "total_tokens"),
)
_DETAILS_FIELDS: Final = ("prompt_tokens_details", "input_tokens_details")
_ANSWER_DETAILS_FIELDS: Final = ("completion_tokens_details", "output_tokens_details")
_CACHED_FIELDS: Final = ("cached_tokens", "prompt_cache_hit_tokens")
_CACHE_WRITE_FIELDS: Final = ("cache_write_tokens", "cache_creation_input_tokens")
_REASONING_FIELDS: Final = ("reasoning_tokens", "thinking_tokens")
_DIGITS: Final = re.compile(r"[0-9]{1,16}")


def parse_usage(usage: Mapping[str, Any]) -> Usage:
    """Returns the token counts of a usage object. A count that is missing or invalid is 0."""
    prompt, completion, total = (next(filter(None, map(_count, map(usage.get, names))), 0) for names in _COUNT_FIELDS)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total or prompt + completion,
        cached_tokens=_find_count(usage, _DETAILS_FIELDS, _CACHED_FIELDS),
        cache_write_tokens=_find_count(usage, _DETAILS_FIELDS, _CACHE_WRITE_FIELDS) or None,
        reasoning_tokens=_find_count(usage, _ANSWER_DETAILS_FIELDS, _REASONING_FIELDS) or None,
    )


def _find_count(usage: Mapping[str, Any], details_fields: Sequence[str], names: Sequence[str]) -> int | None:
    """Returns the first count with one of the names, in the details or beside them."""
    places = [usage[name] for name in details_fields if isinstance(usage.get(name), Mapping)]
    counts = [_count(place.get(name)) for place in (*places, usage) for name in names if name in place]
    return next((count for count in counts if count is not None), None)


def merge_usage(before: dict[str, Any] | None, usage: dict[str, Any]) -> dict[str, Any]:
    """Returns the usage after a further one. The larger count is the later one, since some servers end with zeros.

    Servers that report the tokens of the prompt and of the answer apart send a total of neither.
    """
    if before is None or _covers(usage, before):
        return usage
    merged = _larger_counts(before, usage)
    if merged != before:
        prompt, completion = (next(filter(None, map(_count, map(merged.get, names))), 0) for names in _COUNT_FIELDS[:2])
        total = _count(merged.get("total_tokens"))
        if total is not None and total < prompt + completion:
            merged["total_tokens"] = prompt + completion
    return merged


def _covers(usage: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return all(_is_number(count := usage.get(name)) and count >= n for name, n in before.items() if _is_number(n) and n)


def _larger_counts(before: Mapping[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for name, value in usage.items():
        known = merged.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            merged[name] = _larger_counts(known, value)
        elif name not in merged and len(merged) >= _NAMES_MAX:
            continue
        elif not known or (_is_number(value) and _is_number(known) and value > known):
            merged[name] = value
    return merged


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def groq_usage(extension: object) -> dict[str, Any] | None:
    """Returns the usage in Groq's `x_groq` field, which it sends when the request did not ask for usage."""
    usage = extension.get("usage") if isinstance(extension, dict) else None
    return usage if isinstance(usage, dict) and usage else None


def _count(value: object) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    return int(value) if isinstance(value, int | float) and 0 <= value <= _COUNT_MAX else None
