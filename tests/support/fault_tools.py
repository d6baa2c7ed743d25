"""Tools for tests of faults. All workers note each call in the file `FAULT_TOOLS_LOG`."""

import asyncio
import os
import signal
import time
from pathlib import Path

from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred


def _note(line: str) -> None:
    with Path(os.environ["FAULT_TOOLS_LOG"]).open("a") as output:
        output.write(line + "\n")


def quick(n: int) -> str:
    """Return immediately."""
    _note(f"quick {n}")
    return f"quick {n}"


async def slow(n: int, seconds: float = 1.0) -> str:
    """Take a while."""
    _note(f"slow {n}")
    await asyncio.sleep(seconds)
    _note(f"slow {n} done")
    return f"slow {n}"


@tool(idempotent=False)
async def pay(n: int, seconds: float = 1.0) -> str:
    """Must not run twice."""
    _note(f"pay {n}")
    await asyncio.sleep(seconds)
    return f"paid {n}"


@tool(idempotent=False, requires_approval=True)
async def sign(n: int, seconds: float = 1.0) -> str:
    """Must not run twice, nor without a person's approval."""
    _note(f"sign {n}")
    await asyncio.sleep(seconds)
    return f"signed {n}"


@tool(idempotent=False, deferred=True)
async def order(n: int, context: ToolContext) -> Deferred:
    """Must not start twice; its result comes from outside."""
    _note(f"order {n} {context.call_token} {context.result_url}".strip())
    await asyncio.sleep(float(os.environ.get("FAULT_TOOLS_ORDER_S", "0.2")))
    return Deferred()


@tool(deferred=True)
async def render(n: int, context: ToolContext) -> Deferred:
    """May start twice; its result comes from outside."""
    _note(f"render {n} {context.call_token} {context.result_url}".strip())
    await asyncio.sleep(float(os.environ.get("FAULT_TOOLS_ORDER_S", "0.2")))
    return Deferred()


def blocking(seconds: float = 1.0) -> str:
    """Block a thread."""
    _note("blocking")
    time.sleep(seconds)
    return "blocked"


async def busy(seconds: float = 1.0) -> str:
    """Block the event loop itself."""
    _note("busy")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "was busy"


def poison() -> str:
    """Kill the worker."""
    _note("poison")
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


TOOLS = ",".join(
    f"tests.support.fault_tools:{name}"
    for name in ("quick", "slow", "pay", "sign", "order", "render", "blocking", "busy", "poison")
)
