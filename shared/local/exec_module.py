"""Replaces this process by a module's, so that the command line starts gateway and worker without importing them."""

import os
import sys
from typing import NoReturn


def exec_module(module: str, *args: str) -> NoReturn:
    """Replaces the current process by `python -m module`. Signals then reach it directly."""
    os.execv(sys.executable, [sys.executable, "-m", module, *args])  # noqa: S606 - our own program
