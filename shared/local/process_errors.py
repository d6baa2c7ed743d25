"""Errors of processes that start on this machine."""

from stagebus.shared.errors import StagebusError


class ChildFailed(StagebusError):
    """A child process did not start or did not become ready."""


class PortTaken(StagebusError):
    """A process cannot listen on the configured address."""

    def __init__(self, setting: str, host: str, port: int, reason: str) -> None:
        super().__init__(f"{setting}: cannot listen on {host}, port {port}: {reason}")
