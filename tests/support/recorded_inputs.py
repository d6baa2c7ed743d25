"""The folders with recorded answers of providers, which are not part of the repository."""

import os
from pathlib import Path
from typing import Final

_SHARED: Final = Path(__file__).parents[3] / "shared"

# The environment's names for these folders.
RECORDINGS: Final = frozenset({"STAGEBUS_CORPUS", "STAGEBUS_CASES", "STAGEBUS_STREAMS"})
CORPUS: Final = Path(os.environ.get("STAGEBUS_CORPUS") or _SHARED / "corpus")
STREAMS: Final = Path(os.environ.get("STAGEBUS_STREAMS") or _SHARED / "streams")
CASES: Final = Path(os.environ.get("STAGEBUS_CASES") or _SHARED / "cases" / "turn-2")
