"""Children that are kept running, and stopped in order."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadProviders
from stagebus.shared.local import supervisor as supervisor_module
from stagebus.shared.local.process import ChildSpec
from stagebus.shared.local.process_errors import ChildFailed
from stagebus.shared.local.supervisor import (
    DEMO_TOOL,
    Supervisor,
    UpOptions,
    demo_environment,
    describe_exit,
    page_address,
    up,
)
from tests.support.processes import is_alive
from tests.support.waiting import until

# It leaves once the pipe that it is given has a line for it.
SERVE = """
import os, signal, sys
def leave(*_):
    sys.argv[1] and open(sys.argv[1]).readline(); print("left"); sys.exit()
signal.signal(15, leave)
print("pid", os.getpid()); print("ready at", os.getpid())
while True: signal.pause()
"""


def spec(name: str, leave_at: object = "", **options) -> ChildSpec:
    argv = (sys.executable, "-u", "-c", SERVE, str(leave_at))
    return ChildSpec(name, argv, re.compile(r"^ready at (\d+)$"), **options)


class Kept:
    """A supervisor, and what it showed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.supervisor = Supervisor(lambda name, line: self.lines.append(f"{name}: {line}"))

    def pids(self, name: str) -> list[int]:
        return [int(line.split()[-1]) for line in self.lines if line.startswith(f"{name}: pid ")]


@pytest.fixture
async def kept(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    monkeypatch.setattr(supervisor_module, "BACKOFF_S", 0.02)
    monkeypatch.setattr(supervisor_module, "BACKOFF_MAX_S", 0.05)
    kept = Kept()
    yield kept
    kept.supervisor.kill()
    await kept.supervisor.stop()


async def test_up_starts_nothing_while_a_variable_of_the_providers_file_is_not_set(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    key = '{ env = "STAGEBUS_NO_SUCH_KEY" }'
    file.write_text(f'[providers.a]\nbase_url = "https://a.example/v1"\nkey = {key}\nmodels = ["m"]\n')
    options = UpOptions("127.0.0.1", 0, tmp_path / "data")
    with pytest.raises(BadProviders, match=r"a\.key: the environment variable STAGEBUS_NO_SUCH_KEY is"):
        await up(options, Settings(providers=file))

    assert not options.data_dir.exists()


async def test_dead_child_starts_again(kept: Kept) -> None:
    first = int(await kept.supervisor.start(spec("a")))
    for times in (1, 2, 3):
        os.kill(kept.pids("a")[-1], signal.SIGKILL)
        await until(lambda times=times: kept.lines.count("a: is back") == times)

    assert kept.pids("a")[0] == first
    assert len(set(kept.pids("a"))) == 4
    assert kept.lines[1:3] == ["a: ended with SIGKILL; it starts again in 0.02 s", f"a: pid {kept.pids('a')[1]}"]
    assert "a: ended with SIGKILL; it starts again in 0.05 s" in kept.lines


async def test_child_that_does_not_come_back_is_tried_on(kept: Kept, tmp_path) -> None:
    flag = tmp_path / "fail"
    program = f"import os, sys; os.path.exists({str(flag)!r}) and sys.exit(4)\n{SERVE}"
    await kept.supervisor.start(replace(spec("a"), argv=(sys.executable, "-u", "-c", program, "")))
    flag.touch()
    os.kill(kept.pids("a")[0], signal.SIGKILL)
    await until(lambda: kept.lines.count("a: a ended at its start with code 4") >= 2)
    flag.unlink()
    await until(lambda: "a: is back" in kept.lines)


async def test_child_may_change_for_its_next_start(kept: Kept) -> None:
    def again(spec: ChildSpec, answer: str) -> ChildSpec:
        return replace(spec, name=f"after-{answer}")

    first = await kept.supervisor.start(spec("a"), again=again)
    os.kill(int(first), signal.SIGKILL)
    await until(lambda: f"after-{first}: is back" in kept.lines)


async def test_first_start_that_fails_is_an_error(kept: Kept) -> None:
    with pytest.raises(ChildFailed, match="a ended at its start"):
        await kept.supervisor.start(ChildSpec("a", (sys.executable, "-c", ""), re.compile("x")))


async def test_stop_goes_down_in_order(kept: Kept, tmp_path) -> None:
    """Processes that drain stop together, even if one takes long; what they depend on stops after them."""
    os.mkfifo(tmp_path / "leave")
    for name, leave_at, drains in (
        ("valkey", "", False),
        ("demo", "", False),
        ("worker", tmp_path / "leave", True),
        ("gateway", "", True),
    ):
        await kept.supervisor.start(spec(name, leave_at, drains=drains))
    stopping = asyncio.create_task(kept.supervisor.stop())
    await until(lambda: "gateway: left" in kept.lines)
    pipe = os.open(tmp_path / "leave", os.O_RDWR)  # for reading, too, so that opening it does not block
    os.write(pipe, b"\n")
    await stopping
    os.close(pipe)

    assert [line for line in kept.lines if line.endswith(": left")] == [
        "gateway: left", "worker: left", "demo: left", "valkey: left",
    ]  # fmt: skip
    assert not any("ended with" in line for line in kept.lines)
    assert not any(is_alive(pid) for name in ("valkey", "demo", "worker", "gateway") for pid in kept.pids(name))


async def test_stop_is_bounded(kept: Kept, tmp_path) -> None:
    os.mkfifo(tmp_path / "never")
    await kept.supervisor.start(spec("a", tmp_path / "never", stop_max_s=0.2))
    await kept.supervisor.stop()

    assert not is_alive(kept.pids("a")[0])


async def test_stop_in_the_middle_of_a_restart_leaves_nothing(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    flag = tmp_path / "mute"
    program = f"import os, signal; print('pid', os.getpid()); os.path.exists({str(flag)!r}) and signal.pause()\n{SERVE}"
    await kept.supervisor.start(replace(spec("a"), argv=(sys.executable, "-u", "-c", program, "")))
    flag.touch()
    os.kill(kept.pids("a")[0], signal.SIGKILL)
    await until(lambda: len(kept.pids("a")) == 3)  # the first printed its pid twice
    await kept.supervisor.stop()

    assert not is_alive(kept.pids("a")[-1])


def test_demo_environment_leaves_what_the_operator_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STAGEBUS_MODEL", "STAGEBUS_WEATHER_GEOCODING_URL", "STAGEBUS_WEATHER_FORECAST_URL", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.setenv("STAGEBUS_EGRESS_ALLOW", "10.1.0.0/16")
    monkeypatch.setenv("STAGEBUS_MODEL", "demo:delay_ms=2")
    monkeypatch.setenv("STAGEBUS_TOOLS", "mytools:book_table")
    monkeypatch.delenv("STAGEBUS_ASK_USER", raising=False)

    env = demo_environment("http://127.0.0.1:7")
    assert env == {
        "OPENAI_BASE_URL": "http://127.0.0.1:7/v1",
        "OPENAI_API_KEY": "demo",
        "STAGEBUS_WEATHER_GEOCODING_URL": "http://127.0.0.1:7",
        "STAGEBUS_WEATHER_FORECAST_URL": "http://127.0.0.1:7",
        "STAGEBUS_EGRESS_ALLOW": "10.1.0.0/16,127.0.0.1:7",
        "STAGEBUS_TOOLS": f"{DEMO_TOOL},mytools:book_table",
        "STAGEBUS_ASK_USER": "true",
        "NO_PROXY": "intranet,127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.mark.parametrize(("own", "tools"), [("", DEMO_TOOL), (f"{DEMO_TOOL},m:f", None)])
def test_demo_environment_has_the_demo_s_tool_once(
    own: str, tools: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGEBUS_TOOLS", own)

    assert demo_environment("http://127.0.0.1:7").get("STAGEBUS_TOOLS") == tools


def test_exit_codes_are_described() -> None:
    assert [describe_exit(code) for code in (0, 3, -9, -250)] == ["code 0", "code 3", "SIGKILL", "signal 250"]


@pytest.mark.parametrize(
    ("listening", "page"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("http://[::]:8000", "http://[::1]:8000"),
        ("http://10.0.0.7:8000", "http://10.0.0.7:8000"),
    ],
)
def test_page_s_address_is_one_that_a_browser_can_open(listening: str, page: str) -> None:
    assert page_address(listening) == page
