"""Lets other commands find a running `stagebus up`: a file in its data folder with the environment of its processes.

    .stagebus/running.json     {"STAGEBUS_REDIS_URL": "redis://127.0.0.1:40123/0", …}

`stagebus up` holds a lock on the file while it runs, so a file that a killed process left behind is not used.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FILE: Final = "running.json"


@contextmanager
def published(data_dir: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Context manager: others find the environment. Does nothing if the folder is not writable or another one uses it."""
    fd = _open_locked(data_dir)
    if fd is None:
        yield
        return
    try:
        os.ftruncate(fd, 0)
        os.write(fd, json.dumps(dict(env)).encode())
        yield
    finally:
        (data_dir / FILE).unlink(missing_ok=True)
        os.close(fd)


def find_environment(data_dir: Path) -> dict[str, str]:
    """Returns the environment of this user's `stagebus up` that runs with this data folder; empty if none does."""
    try:
        with (data_dir / FILE).open("rb") as file:
            # In a folder that others can write to, such as /tmp, it could name their provider, which would get a key.
            if os.fstat(file.fileno()).st_uid != os.geteuid() or _lock(file.fileno(), fcntl.LOCK_SH):
                return {}
            found = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _open_locked(data_dir: Path) -> int | None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(data_dir / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    if _lock(fd, fcntl.LOCK_EX):
        return fd
    os.close(fd)
    return None


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
