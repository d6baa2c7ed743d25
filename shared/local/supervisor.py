"""`stagebus up`: runs the whole system on one machine as supervised child processes.

    valkey ─▶ demo model ─▶ worker and gateway    each starts when the one before it is ready
    gateway and worker ─▶ demo model ─▶ valkey    the shutdown: first those that drain

Valkey is started if no Redis is configured, the demo model if no provider is configured. `--local` starts a small real
model instead of the demo model.
"""

import asyncio
import errno
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from stagebus.shared.config.providers import check_variables
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.startup_checks import check_access, check_exposure
from stagebus.shared.local import running_system
from stagebus.shared.local.embedded_valkey import EmbeddedValkey
from stagebus.shared.local.process import Child, ChildSpec
from stagebus.shared.local.process_errors import ChildFailed
from stagebus.shared.local.process_output import Printer
from stagebus.shared.runtime.tasks import cancel_and_wait

BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 15.0
# After running for this long, a child's backoff is reset.
STEADY_S: Final = 30.0
# Time between the end of a drain, by the settings of gateway and worker, and SIGKILL.
DRAIN_MARGIN_S: Final = 8.0
LOCAL_MODEL: Final = "smollm2"
DEMO_TOOL: Final = "stagebus.worker.demo.demo_tools:book_table"

LISTENING: Final = re.compile(r"^listening on (http://\S+)$")
_WORKER_READY: Final = re.compile(r"is ready for \d+ runs")
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - not used to listen


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options of `stagebus up`. Port 0 means any free port."""

    host: str
    port: int
    data_dir: Path
    is_local: bool = False


async def up(options: UpOptions, settings: Settings) -> None:
    """Runs the system until SIGINT, SIGTERM or SIGHUP, then stops it in order. A second signal kills it immediately.

    Raises:
        AccessUnset, BadProviders, GatewayExposed, ChildFailed, StorageUnfit: a part cannot start. The message says what to
            do, and the other parts are stopped.
    """
    check_access(settings)
    check_variables(settings)
    check_exposure(settings, options.host)
    _check_port(options.host, options.port)
    printer = Printer()
    stop_requested = asyncio.Event()
    with ExitStack() as stack:
        supervisor = Supervisor(printer.print_output)
        on_signals(stop_requested, supervisor.kill)
        starting = asyncio.create_task(_start(supervisor, options, settings, printer, stack))
        waiting = asyncio.create_task(stop_requested.wait())
        try:
            await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                printer.print_message(f"Stagebus is up: {starting.result()}")
                await waiting
            printer.print_message("stopping; press Ctrl-C again to stop immediately")
        finally:
            starting.cancel()
            waiting.cancel()
            await asyncio.gather(starting, waiting, return_exceptions=True)
            await supervisor.stop()


async def _start(
    supervisor: "Supervisor", options: UpOptions, settings: Settings, printer: Printer, stack: ExitStack
) -> str:
    """Starts all children. Returns the URL of the page."""
    env: dict[str, str] = {}
    if "redis_url" not in settings.model_fields_set:
        valkey = stack.enter_context(EmbeddedValkey(options.data_dir))
        await supervisor.start(valkey.spec())
        env["STAGEBUS_REDIS_URL"] = valkey.url
        printer.print_message(f"runs are stored in {valkey.data_dir}; inspect them with: redis-cli -p {valkey.port}")
    if options.is_local:
        local = _module("local", "stagebus.worker.demo.local_model", LISTENING, "--port", "0")
        env |= local_environment(await supervisor.start(local, again=_on_same_port), options.data_dir)
        printer.print_message("a small model on this machine answers; it cannot call tools")
    elif not settings.openai_base_url and settings.providers is None:
        demo = _module("demo", "stagebus.worker.demo.demo_model", LISTENING, "--port", "0")
        env |= demo_environment(await supervisor.start(demo, again=_on_same_port))
        printer.print_message(
            "neither OPENAI_BASE_URL nor STAGEBUS_PROVIDERS is set, so the built-in demo model answers"
        )
    stack.enter_context(running_system.published(options.data_dir, env))
    worker = _module("worker", "stagebus.worker", _WORKER_READY)
    insecure = ["--insecure"] if settings.insecure else []
    gateway = _module(
        "gateway", "stagebus.gateway", LISTENING, "--host", options.host, *insecure, "--port", str(options.port)
    )
    drain_s = settings.drain_delay_s + settings.drain_spread_s
    starting = [
        asyncio.create_task(supervisor.start(replace(spec, env=env, drains=True, stop_max_s=drain_max_s), again=again))
        for spec, drain_max_s, again in (
            (worker, settings.drain_grace_s + DRAIN_MARGIN_S, None),
            (gateway, drain_s + DRAIN_MARGIN_S, _on_same_port),
        )
    ]
    try:
        _, address = await asyncio.gather(*starting)
    finally:
        await cancel_and_wait(*starting)
    return page_address(address)


def page_address(address: str) -> str:
    """Returns the URL for a browser on this machine. `address` may be a wildcard such as 0.0.0.0."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return f"http://{_ANY_ADDRESS.get(host, host)}:{port}"


def demo_environment(address: str) -> dict[str, str]:
    """Returns the environment for the demo model, its weather service and its tool. Does not override set variables."""
    defaults = {
        "STAGEBUS_MODEL": "demo",
        "STAGEBUS_WEATHER_GEOCODING_URL": address,
        "STAGEBUS_WEATHER_FORECAST_URL": address,
        "STAGEBUS_ASK_USER": "true",
    }
    env = {name: value for name, value in defaults.items() if not os.environ.get(name)}
    tools = os.environ.get("STAGEBUS_TOOLS", "")
    if DEMO_TOOL not in tools:
        # First, since an operator's tool of the same name replaces it.
        env["STAGEBUS_TOOLS"] = ",".join(filter(None, (DEMO_TOOL, tools)))
    # By default tools cannot connect to loopback addresses.
    allowed = (os.environ.get("STAGEBUS_EGRESS_ALLOW"), address.removeprefix("http://"))
    env["STAGEBUS_EGRESS_ALLOW"] = ",".join(filter(None, allowed))
    return {**env, **_no_proxy(), "OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": "demo"}


def local_environment(address: str, data_dir: Path) -> dict[str, str]:
    """Returns the environment for the local model. Writes a providers file, which says that the model cannot call tools."""
    data_dir.mkdir(parents=True, exist_ok=True)
    file = data_dir / "local-model.toml"
    models = f'{{ name = "{LOCAL_MODEL}", tools = "none" }}'
    file.write_text(f'[providers.local]\nbase_url = "{address}/v1"\nmodels = [{models}]\n')
    return {"STAGEBUS_PROVIDERS": str(file.resolve()), "STAGEBUS_MODEL": LOCAL_MODEL, **_no_proxy()}


def _no_proxy() -> dict[str, str]:
    """Returns the environment that excludes local addresses from a configured proxy."""
    return {name: ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))) for name in ("NO_PROXY", "no_proxy")}


def _module(name: str, module: str, ready: re.Pattern[str], *args: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-m", module, *args), ready)


def _on_same_port(spec: ChildSpec, address: str) -> ChildSpec:
    """Returns the spec for restarts, with the port of the first start, since clients use it."""
    return replace(spec, argv=(*spec.argv[:-1], address.rpartition(":")[2]))


def _check_port(host: str, port: int) -> None:
    """Checks that the gateway can listen, before anything is started.

    Raises:
        ChildFailed: the port is taken or the address is not available.
    """
    try:
        family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(sockaddr)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ChildFailed(
                f"port {port} of {host} is taken: choose another one with --port (make up PORT=…), or 0 for any free port"
            ) from exc
        raise ChildFailed(f"cannot listen on {host}, port {port}: {exc.strerror or exc}") from exc


def on_signals(stop_requested: asyncio.Event, kill: Callable[[], None]) -> None:
    """Sets `stop_requested` at the first SIGINT, SIGTERM or SIGHUP, and calls `kill` at each further one."""

    def on_signal() -> None:
        if stop_requested.is_set():
            kill()
        stop_requested.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, on_signal)


class Supervisor:
    """Runs child processes and restarts those that end."""

    def __init__(self, show: Callable[[str, str], None]) -> None:
        """`show` is called with a child's name and a line of its output, or a message about it."""
        self._show = show
        self._children: list[Child] = []
        self._restart_tasks: list[asyncio.Task[None]] = []

    async def start(self, spec: ChildSpec, again: Callable[[ChildSpec, str], ChildSpec] | None = None) -> str:
        """Starts a child and keeps it running. Returns the result of its start, see `Child.start`.

        Args:
            again: returns the spec for restarts from the first spec and the result of the start.

        Raises:
            ChildFailed: the child did not become ready.
        """
        index = len(self._children)
        self._children.append(self._child(spec))
        answer = await self._children[index].start()
        self._restart_tasks.append(
            asyncio.create_task(self._keep_running(index, again(spec, answer) if again else spec))
        )
        return answer

    async def stop(self) -> None:
        """Stops all children: first those that drain, together, then the others in reverse order of their start."""
        for task in self._restart_tasks:
            task.cancel()
        await asyncio.gather(*self._restart_tasks, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self._children if child.spec.drains))
        for child in reversed(self._children):
            await child.stop()

    def kill(self) -> None:
        """Kills all children immediately."""
        for child in self._children:
            child.kill()

    def _child(self, spec: ChildSpec) -> Child:
        return Child(spec, lambda line: self._show(spec.name, line))

    async def _keep_running(self, index: int, spec: ChildSpec) -> None:
        """Restarts a child whenever it ends. The backoff grows until it runs for `STEADY_S`."""
        backoff_s = BACKOFF_S
        while True:
            started = time.monotonic()
            code = await self._children[index].wait()
            if time.monotonic() - started > STEADY_S:
                backoff_s = BACKOFF_S
            self._show(spec.name, f"ended with {describe_exit(code)}; it starts again in {backoff_s:g} s")
            while not await self._restart(index, spec, backoff_s):
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
                self._show(spec.name, f"the next try is in {backoff_s:g} s")
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _restart(self, index: int, spec: ChildSpec, backoff_s: float) -> bool:
        await self._children[index].stop(0)
        await asyncio.sleep(backoff_s)
        self._children[index] = self._child(spec)
        try:
            await self._children[index].start()
        except ChildFailed as exc:
            self._show(spec.name, str(exc))
            return False
        self._show(spec.name, "is back")
        return True


def describe_exit(code: int) -> str:
    """Describes an exit code: `code 1`, or `SIGKILL` for -9."""
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
