r"""Matches patterns of third parties in linear time, with RE2.

Python's `re` backtracks: `^([a-zA-Z]+ ?)+$` takes minutes for 46 characters. RE2 does not, but it refuses look-around,
backreferences and counts above 1,000. A pattern that it refuses cannot be checked here.

JSON Schema's patterns are those of ECMA-262, which has one more escape: `\u00e4` is RE2's `\x{00e4}`.
Spec: https://github.com/google/re2/wiki/Syntax
"""

import re
from functools import lru_cache
from typing import Final

import re2  # type: ignore[import-untyped]

# For the program and the cached states of one pattern. RE2 refuses a pattern that needs more.
_MEMORY_MAX_BYTES: Final = 2**18
_SIZE_MAX: Final = _MEMORY_MAX_BYTES // 16
_CACHED_PATTERNS_MAX: Final = 256
_ESCAPE: Final = re.compile(r"\\(?:u(?:([0-9a-fA-F]{4})|\{([0-9a-fA-F]{1,6})\})|.)", re.DOTALL)


class LinearPattern:
    """A pattern, compiled if RE2 can take it.

    Attributes:
        refusal: why RE2 cannot take it; empty if it can.
        size: the instructions of its program, about 0.5 us each to compile. This times the length of a text is the most
            work that a search takes. For a pattern that is too large: the instructions after which RE2 gave up.
    """

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.max_mem = _MEMORY_MAX_BYTES
        options.never_capture = True
        options.log_errors = False
        self.refusal = ""
        self.size = 1
        try:
            self._compiled = re2.compile(_ESCAPE.sub(_to_re2, pattern), options=options)
            self.size = self._compiled.programsize
        except re2.error as exc:
            self.refusal = exc.args[0].decode(errors="replace")
            self.size = _SIZE_MAX if self.refusal.startswith("pattern too large") else 1
        except UnicodeEncodeError:
            self.refusal = "it is not Unicode"

    def is_in(self, text: str) -> bool:
        """Returns whether the pattern matches a part of the text. Other threads run meanwhile.

        Raises:
            UnicodeEncodeError: the text has a lone surrogate.
        """
        assert not self.refusal, "a refused pattern matches nothing"
        return self._compiled.search(text) is not None


def _to_re2(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return f"\\x{{{code}}}" if code else escape[0]


# Compiling takes up to 7 ms.
compile_pattern = lru_cache(_CACHED_PATTERNS_MAX)(LinearPattern)
