"""`stagebus up`: the whole system on one machine, as child processes that are kept running.

    valkey ─▶ demo model ─▶ worker and gateway    each waits for the one before it to be ready
    gateway and worker ─▶ demo model ─▶ valkey    the way down: first those that have something to finish

Valkey and the demo model are started where the environment names no Redis and no provider. With
`--local` a small real model takes the demo model's place.
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

from stagebus.shared.config.settings import Settings
from stagebus.shared.config.startup_checks import check_access, check_exposure
from stagebus.shared.errors import ChildFailed
from stagebus.shared.local.embedded_valkey import EmbeddedValkey
from stagebus.shared.local.process import Child, ChildSpec
from stagebus.shared.local.process_output import Printer
from stagebus.shared.runtime.tasks import cancel_and_wait

BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 15.0
# A child that ran for this long starts its backoff anew.
STEADY_S: Final = 30.0
# Beyond what their settings grant gateway and worker for their drain, before SIGKILL.
DRAIN_MARGIN_S: Final = 8.0
LOCAL_MODEL: Final = "smollm2"
DEMO_TOOL: Final = "stagebus.worker.demo.demo_tools:book_table"

LISTENING: Final = re.compile(r"^listening on (http://\S+)$")
_WORKER_READY: Final = re.compile(r"is ready for \d+ runs")
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - looked for, not bound to


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `stagebus up` was asked for; port 0 takes any free one."""

    host: str
    port: int
    data_dir: Path
    is_local: bool = False


async def up(options: UpOptions, settings: Settings) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP, then stop it in order; a second signal stops it at once.

    Raises:
        AccessUnset, GatewayExposed, ChildFailed, StorageUnfit: something does not start; the message says what to do, and nothing is left running.
    """
    check_access(settings)
    check_exposure(settings, options.host)
    _check_port(options.host, options.port)
    printer = Printer()
    told = asyncio.Event()
    with ExitStack() as stack:
        supervisor = Supervisor(printer.show)
        on_signals(told, supervisor.kill)
        starting = asyncio.create_task(_start(supervisor, options, settings, printer, stack))
        waiting = asyncio.create_task(told.wait())
        try:
            await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                printer.say(f"Stagebus is up: {starting.result()}")
                await waiting
            printer.say("stopping; once more to stop at once")
        finally:
            starting.cancel()
            waiting.cancel()
            await asyncio.gather(starting, waiting, return_exceptions=True)
            await supervisor.stop()


async def _start(
    supervisor: "Supervisor", options: UpOptions, settings: Settings, printer: Printer, stack: ExitStack
) -> str:
    """Start every child; the page's address."""
    env: dict[str, str] = {}
    if "redis_url" not in settings.model_fields_set:
        valkey = stack.enter_context(EmbeddedValkey(options.data_dir))
        await supervisor.start(valkey.spec())
        env["STAGEBUS_REDIS_URL"] = valkey.url
        printer.say(f"runs are kept in {valkey.data_dir}; to look at them: redis-cli -p {valkey.port}")
    if options.is_local:
        local = _module("local", "stagebus.worker.demo.local_model", LISTENING, "--port", "0")
        env |= local_environment(await supervisor.start(local, again=_on_same_port), options.data_dir)
        printer.say("a small model on this machine answers; it calls no tools")
    elif not settings.openai_base_url and settings.providers is None:
        demo = _module("demo", "stagebus.worker.demo.demo_model", LISTENING, "--port", "0")
        env |= demo_environment(await supervisor.start(demo, again=_on_same_port))
        printer.say("neither OPENAI_BASE_URL nor STAGEBUS_PROVIDERS is set, so the built-in demo model answers")
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
    """Where a browser on this machine finds what listens on `address`, which may be every address there is."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return f"http://{_ANY_ADDRESS.get(host, host)}:{port}"


def demo_environment(address: str) -> dict[str, str]:
    """What makes a worker use the demo model, its weather and its table to book; what the operator set otherwise stays."""
    wanted = {
        "STAGEBUS_MODEL": "demo",
        "STAGEBUS_WEATHER_GEOCODING_URL": address,
        "STAGEBUS_WEATHER_FORECAST_URL": address,
        "STAGEBUS_ASK_USER": "true",
    }
    env = {name: value for name, value in wanted.items() if not os.environ.get(name)}
    tools = os.environ.get("STAGEBUS_TOOLS", "")
    if DEMO_TOOL not in tools:
        # First, since an operator's tool of the same name replaces it.
        env["STAGEBUS_TOOLS"] = ",".join(filter(None, (DEMO_TOOL, tools)))
    # Tools reach no loopback address of themselves.
    allowed = (os.environ.get("STAGEBUS_EGRESS_ALLOW"), address.removeprefix("http://"))
    env["STAGEBUS_EGRESS_ALLOW"] = ",".join(filter(None, allowed))
    return {**env, **_no_proxy(), "OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": "demo"}


def local_environment(address: str, data_dir: Path) -> dict[str, str]:
    """What makes gateway and worker use the local model: a providers file, as it has to say that it calls no tools."""
    data_dir.mkdir(parents=True, exist_ok=True)
    file = data_dir / "local-model.toml"
    models = f'{{ name = "{LOCAL_MODEL}", tools = "none" }}'
    file.write_text(f'[providers.local]\nbase_url = "{address}/v1"\nmodels = [{models}]\n')
    return {"STAGEBUS_PROVIDERS": str(file.resolve()), "STAGEBUS_MODEL": LOCAL_MODEL, **_no_proxy()}


def _no_proxy() -> dict[str, str]:
    """A proxy that the environment names for the world outside would not find us."""
    return {name: ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))) for name in ("NO_PROXY", "no_proxy")}


def _module(name: str, module: str, ready: re.Pattern[str], *args: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-m", module, *args), ready)


def _on_same_port(spec: ChildSpec, address: str) -> ChildSpec:
    """The spec for the next time: where the system chose the port, clients know it by now."""
    return replace(spec, argv=(*spec.argv[:-1], address.rpartition(":")[2]))


def _check_port(host: str, port: int) -> None:
    """See now, not after all else has started, whether the gateway will be able to listen.

    Raises:
        ChildFailed: it will not.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ChildFailed(
                f"port {port} of {host} is taken: choose another with --port (make up PORT=…), or 0 for any free one"
            ) from exc
        raise ChildFailed(f"cannot listen on {host}, port {port}: {exc.strerror or exc}") from exc


def on_signals(told: asyncio.Event, kill: Callable[[], None]) -> None:
    """Set `told` at the first signal to end, and call `kill` at each further one."""

    def on_signal() -> None:
        if told.is_set():
            kill()
        told.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, on_signal)


class Supervisor:
    """Children in the order of their start; each is started again when it dies."""

    def __init__(self, show: Callable[[str, str], None]) -> None:
        """`show` gets a child's name and a line of its output, or of ours about it."""
        self._show = show
        self._children: list[Child] = []
        self._keeping: list[asyncio.Task[None]] = []

    async def start(self, spec: ChildSpec, again: Callable[[ChildSpec, str], ChildSpec] | None = None) -> str:
        """Start a child and keep it running; what its ready line says.

        Args:
            again: the spec of later starts, out of the first one's and what its ready line said.

        Raises:
            ChildFailed: it did not become ready.
        """
        place = len(self._children)
        self._children.append(self._child(spec))
        answer = await self._children[place].start()
        self._keeping.append(asyncio.create_task(self._keep(place, again(spec, answer) if again else spec)))
        return answer

    async def stop(self) -> None:
        """Stop all: first those that drain, together, then the others in the order opposite to their start."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self._children if child.spec.drains))
        for child in reversed(self._children):
            await child.stop()

    def kill(self) -> None:
        """End all at once."""
        for child in self._children:
            child.kill()

    def _child(self, spec: ChildSpec) -> Child:
        return Child(spec, lambda line: self._show(spec.name, line))

    async def _keep(self, place: int, spec: ChildSpec) -> None:
        """Start a child again whenever it ends, after a backoff that grows while it does not last."""
        backoff_s = BACKOFF_S
        while True:
            started = time.monotonic()
            code = await self._children[place].wait()
            if time.monotonic() - started > STEADY_S:
                backoff_s = BACKOFF_S
            self._show(spec.name, f"ended with {describe_exit(code)}; it starts again in {backoff_s:g} s")
            while not await self._start_again(place, spec, backoff_s):
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
                self._show(spec.name, f"the next try is in {backoff_s:g} s")
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _start_again(self, place: int, spec: ChildSpec, backoff_s: float) -> bool:
        await self._children[place].stop(0)
        await asyncio.sleep(backoff_s)
        self._children[place] = self._child(spec)
        try:
            await self._children[place].start()
        except ChildFailed as exc:
            self._show(spec.name, str(exc))
            return False
        self._show(spec.name, "is back")
        return True


def describe_exit(code: int) -> str:
    """An exit code in words: `code 1`, or `SIGKILL` for -9."""
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
