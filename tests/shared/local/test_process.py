"""Child processes: ready lines, ends, and that none of them is ever left behind."""

import os
import re
import signal
import sys
from contextlib import asynccontextmanager

import pytest

from stagebus.shared.local import process as child_module
from stagebus.shared.local.process import Child, ChildSpec
from stagebus.shared.local.process_errors import ChildFailed
from tests.support.processes import is_alive
from tests.support.waiting import until

READY = re.compile(r"^ready at (\S+)$")


def spec(program: str, **options) -> ChildSpec:
    return ChildSpec("it", (sys.executable, "-u", "-c", program), READY, **options)


@asynccontextmanager
async def started(program: str, lines: list[str], **options):
    child = Child(spec(program, **options), lines.append)
    answer = await child.start()
    try:
        yield child, answer
    finally:
        await child.stop(0)


SERVE = "import signal; print('hello'); print('ready at x'); print('on'); signal.pause()"


async def test_start_returns_what_the_ready_line_says() -> None:
    lines: list[str] = []
    async with started(SERVE, lines) as (child, answer):
        await until(lambda: "on" in lines)
        assert answer == "x"
        assert lines == ["hello", "on"]
        assert is_alive(child.pid)
    assert not is_alive(child.pid)


async def test_child_that_ends_first_has_failed() -> None:
    child = Child(spec("print('no'); raise SystemExit(3)"), (lines := []).append)

    with pytest.raises(ChildFailed, match="it ended at its start with code 3"):
        await child.start()
    assert lines == ["no"]


async def test_missing_program_is_a_failed_child() -> None:
    with pytest.raises(ChildFailed, match="cannot be started"):
        await Child(ChildSpec("it", ("/nowhere/at/all",), READY), print).start()


async def test_child_that_is_never_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "START_MAX_S", 0.5)
    child = Child(spec("import signal; signal.pause()"), print)

    with pytest.raises(ChildFailed, match="is not ready after"):
        await child.start()
    assert not is_alive(child.pid)


async def test_quiet_child_speaks_only_when_it_fails() -> None:
    lines: list[str] = []
    async with started(SERVE, lines, is_quiet=True):
        await until(lambda: lines == ["on"])
    failed = Child(spec("print('why'); raise SystemExit(1)", is_quiet=True), lines.append)

    with pytest.raises(ChildFailed):
        await failed.start()
    assert lines == ["on", "why"]


async def test_stop_asks_first_and_kills_after_its_time() -> None:
    polite = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready at x'); signal.pause()"
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print('ready at x')\nwhile True: signal.pause()"
    async with started(polite, []) as (child, _):
        await child.stop(10)
        assert await child.wait() == 7
    async with started(stubborn, []) as (child, _):
        await child.stop(0.2)
        assert await child.wait() == -signal.SIGKILL


async def test_kill_takes_the_child_s_own_children_along() -> None:
    program = (
        "import signal, subprocess; p = subprocess.Popen(['tail', '-f', '/dev/null']); print('ready at', p.pid); "
        "signal.pause()"
    )
    async with started(program, []) as (child, grandchild):
        child.kill()
        await child.wait()
        await until(lambda: not is_alive(int(grandchild)))


async def test_endless_line_is_no_end_of_reading() -> None:
    lines: list[str] = []
    program = "import signal; print('x' * 3_000_000); print('ready at x'); print('on'); signal.pause()"
    async with started(program, lines):
        await until(lambda: lines and lines[-1] == "on")
        assert all(len(line) < 3_000_000 for line in lines)


async def test_ctrl_c_of_the_terminal_does_not_reach_it() -> None:
    async with started(SERVE, []) as (child, _):
        assert os.getsid(child.pid) == child.pid


PARENT = """
import asyncio, re, sys
from stagebus.shared.local.process import Child, ChildSpec

async def main():
    spec = ChildSpec("it", ("sleep", "600"), re.compile("never"))
    child = Child(spec, print)
    starting = asyncio.create_task(child.start())
    while child._process is None:
        await asyncio.sleep(0.01)
    print("ready at", child.pid, flush=True)
    await starting

asyncio.run(main())
"""


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_child_dies_with_a_parent_that_is_killed() -> None:
    async with started(PARENT, []) as (parent, child_pid):
        assert is_alive(int(child_pid))
        os.kill(parent.pid, signal.SIGKILL)
        await until(lambda: not is_alive(int(child_pid)))
