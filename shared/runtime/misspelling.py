"""Finds environment variables whose names are misspelt, and the right names."""

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import Final

PREFIX: Final = "STAGEBUS_"
# The variables of the command's clients; all others are settings.
CLIENT_VARIABLES: Final = ("STAGEBUS_URL", "STAGEBUS_API_KEY", "STAGEBUS_PROFILE")
_RATIO_MIN: Final = 0.75


def find_misspelt(names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """Yields a warning for each name that begins with `STAGEBUS_`, is not known and resembles a known one.

    Other unknown names are left alone: Kubernetes sets `STAGEBUS_SERVICE_HOST`, for example, and a providers file may
    name any variable as the place of a key.
    """
    rights = list(known)
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in rights and name not in CLIENT_VARIABLES:
            right = max(rights, key=lambda candidate: _likeness(name, candidate))
            if _likeness(name, right) >= _RATIO_MIN:
                yield f"{name} is not a variable of Stagebus and has no effect; did you mean {right}?"


def _likeness(name: str, right: str) -> float:
    """Returns from 0 to 1 how much two names resemble each other."""
    one, other = name.removeprefix(PREFIX), right.removeprefix(PREFIX)
    ratio = SequenceMatcher(a=one, b=other).ratio()
    is_near = sorted(one) == sorted(other) or f"{one}_".startswith(f"{other}_") or f"{other}_".startswith(f"{one}_")
    return max(ratio, _RATIO_MIN) if is_near else ratio
