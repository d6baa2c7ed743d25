"""Starts real processes on free ports for a measurement and reads their CPU and memory.

Claims rest on the CPU that a process used, and on ratios within one run: both hold on a
machine that has other work, too. Times on the clock are given beside them.
"""

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from redis.asyncio import Redis

from benchmarks.rivals import nchan
from stagebus.shared.config.settings import Settings
from stagebus.shared.local.embedded_valkey import find_binary
from stagebus.shared.storage import redis_client

ROOT: Final = Path(__file__).parent.parent
Size = TypeVar("Size")

IS_QUICK: Final = os.environ.get("QUICK", "") not in ("", "0")
RESULTS: Final = ROOT / "benchmarks" / "results" / ("quick" if IS_QUICK else "full")
START_S: Final = 120  # twenty workers that start at once on two cores
ANSWER_S: Final = 300
LINE_MAX_BYTES: Final = 64 * 2**20
PACKAGES: Final = (
    "uvicorn",
    "uvloop",
    "httptools",
    "starlette",
    "sse-starlette",
    "redis",
    "hiredis",
    "orjson",
    "openai",
    "aiohttp",
    "httpx",
    "arq",
)


def sized(full: Size, quick: Size) -> Size:
    """Returns the size of a measurement: full, or small with QUICK=1."""
    return quick if IS_QUICK else full


def free_port() -> int:
    """Returns a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_listening(port: int) -> None:
    """Waits until a server that prints nothing accepts connections."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


class Process:
    """A child process, optionally controlled by lines of JSON, whose CPU and memory can be read."""

    def __init__(self, popen: asyncio.subprocess.Process, log_path: Path) -> None:
        self._popen = popen
        self._log_path = log_path

    @property
    def pid(self) -> int:
        """Returns the process id."""
        return self._popen.pid

    def cpu_s(self) -> float:
        """Returns the CPU time used by the process and its children: all threads, user and kernel."""
        return sum(_cpu_s(pid) for pid in _family(self.pid))

    def memory_bytes(self) -> int:
        """Returns the resident memory without file-backed pages."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    async def line_with(self, text: str) -> str:
        """Waits for an output line that contains `text`; returns the rest of the line."""
        assert self._popen.stdout is not None
        async with asyncio.timeout(START_S):
            while line := (await self._popen.stdout.readline()).decode():
                if text in line:
                    return line.split(text, 1)[1].strip()
        raise RuntimeError(f"a process ended before it was ready: {self._log_path.read_text()[-2000:]}")

    async def ask(self, order: Any) -> Any:
        """Sends one command and waits for its answer."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ANSWER_S):
            answer = await self._popen.stdout.readline()
        if not answer:
            raise RuntimeError(f"a process ended: {self._log_path.read_text()[-2000:]}")
        return json.loads(answer)

    async def stop(self) -> None:
        """Kills the process (SIGKILL)."""
        if self._popen.returncode is None:
            self._popen.kill()
        await self._popen.wait()


class Lab:
    """A folder and processes that are removed when the measurement ends."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._settings_env: dict[str, str] = {}
        self._processes: list[Process] = []

    async def __aenter__(self) -> Self:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="stagebus-bench-")))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
        """Starts a process that ends with the lab."""
        log_path = self.folder / f"{name}-{free_port()}.log"
        with log_path.open("wb") as log:
            popen = await asyncio.create_subprocess_exec(
                *argv, cwd=ROOT, env={**os.environ, **self._settings_env, **(env or {})},
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, limit=LINE_MAX_BYTES,
            )  # fmt: skip
        process = Process(popen, log_path)
        self._processes.append(process)
        self._stack.push_async_callback(process.stop)
        return process

    @contextmanager
    def undisturbed(self) -> Iterator[bool]:
        """Gives its processes real-time priority if the system permits; returns whether it does.

        Who wakes while others use every core waits for the scheduler's next tick, which is 4 ms: of a relay's
        latency, that would be the tail. Not for loads that fill the cores for long: nobody else would get anything.
        """
        pids = [pid for process in self._processes for pid in _family(process.pid)]
        threads = [int(task.name) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
        try:
            _schedule(threads, os.SCHED_RR, 1)
            _schedule([os.getpid()], os.SCHED_RR, 2)  # another client, if it is one, not one that waits for theirs
        except PermissionError:
            yield False
            return
        try:
            yield True
        finally:
            _schedule([*threads, os.getpid()], os.SCHED_OTHER, 0)

    async def python(self, module: str, *args: str, env: Mapping[str, str] | None = None) -> Process:
        """Starts a Python module as a process."""
        return await self.start(module, [sys.executable, "-u", "-m", module, *args], env)

    async def start_redis(self) -> Redis:
        """Starts the Valkey of `stagebus up` with the same settings; later processes use it."""
        port = free_port()
        argv = [str(find_binary()), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.folder)]
        argv += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
        self.redis_process = await self.start("valkey", argv)
        await self.redis_process.line_with("Ready to accept connections")
        self.redis_url = f"redis://127.0.0.1:{port}/0"
        self._settings_env |= {"STAGEBUS_REDIS_URL": self.redis_url, "STAGEBUS_LOG_LEVEL": "WARNING"}
        self.settings = Settings(redis_url=self.redis_url)
        redis = redis_client.connect(self.settings)
        self._stack.push_async_callback(redis_client.close, redis)
        return redis

    async def start_gateway(self) -> tuple[Process, str]:
        """Starts one gateway process; returns it and its URL."""
        process = await self.python("stagebus.gateway", "--port", "0")
        return process, await process.line_with("listening on ")

    async def start_demo(self) -> str:
        """Starts the demo model and returns its URL; later workers use it."""
        process = await self.python("stagebus.worker.demo.demo_model", "--port", "0")
        address = await process.line_with("listening on ")
        self.use_provider(f"{address}/v1")
        return address

    def use_provider(self, base_url: str) -> None:
        """Makes workers that start later use this provider."""
        self._settings_env |= {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "bench"}

    async def start_arq_worker(self, slots: int) -> Process:
        """Starts one plain arq worker for the current provider and Redis."""
        argv = (self.redis_url, self._settings_env["OPENAI_BASE_URL"], str(slots))
        process = await self.python("benchmarks.rivals.arq_worker", *argv)
        await process.line_with("ready")
        return process

    async def start_worker(self, **env: str) -> Process:
        """Starts one worker and waits until it is ready."""
        process = await self.python("stagebus.worker", env={**env, "STAGEBUS_LOG_LEVEL": "INFO"})
        await _until_logged(process, "is ready for")
        return process


async def _until_logged(process: Process, text: str) -> None:
    async with asyncio.timeout(START_S):
        while text not in process._log_path.read_text():  # noqa: ASYNC110, SLF001 - a file says nothing when it grows
            await asyncio.sleep(0.02)


def _schedule(threads: Iterable[int], policy: int, priority: int) -> None:
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(thread, policy, os.sched_param(priority))


def _cpu_s(pid: int) -> float:
    """Returns the scheduler's count in seconds, with ns resolution; /proc/<pid>/stat has hundredths of a second only."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _family(pid: int) -> Iterator[int]:
    yield pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in children.read_text().split():
        yield from _family(int(child))


def machine() -> dict[str, Any]:
    """Describes the machine."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    valkey = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "valkey": next((word[2:] for word in valkey.split() if word.startswith("v=")), valkey.strip()),
        "nchan": nchan.versions(),
        "packages": {name: version(name) for name in PACKAGES},
        "load_1m": os.getloadavg()[0],
        "is_quick": IS_QUICK,
    }


def run(name: str, measure: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Runs a measurement as a program: prints the result and saves it as JSON."""
    import uvloop

    result = uvloop.run(measure())
    save(name, result)
    print(json.dumps(result, indent=1))


def save(name: str, result: dict[str, Any]) -> None:
    """Saves a raw result."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")


def read_results() -> dict[str, Any]:
    """Returns the saved raw results of this size by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
