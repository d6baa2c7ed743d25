"""Inspects real processes through /proc, for tests that start and kill them."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Returns whether a process runs. A zombie does not."""
    try:
        return state_and_parent(pid)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def state_and_parent(pid: int) -> tuple[str, int]:
    """Returns the letter of a process's state and the pid of its parent."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1])


def children_of(parent: int) -> dict[int, str]:
    """Returns the command line of each living child, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, ppid = state_and_parent(int(entry.name))
                if ppid == parent and state not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
