"""The form of run ids, apart from their creation: clients check ids, and do not have the library that makes them."""

from typing import Final

PATTERN: Final = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
