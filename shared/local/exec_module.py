"""The command line starts gateway and worker without importing them: another program takes its place."""

import os
import sys
from typing import NoReturn


def exec_module(module: str, *args: str) -> NoReturn:
    """Let the module's process take this one's place: signals reach it as they are."""
    os.execv(sys.executable, [sys.executable, "-m", module, *args])  # noqa: S606 - our own program
