"""Runs an MCP server as a child process: one JSON-RPC message per line on stdin and stdout, with a length limit.

The SDK's own client (2.3) buffers a line of any length, so a server that never ends a line would use up the worker's
memory.
Spec: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#stdio
"""

import asyncio
import logging
import os
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from stagebus.shared.observability.redaction import redact
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.worker.tools.mcp.mcp_messages import without_lone_surrogates
from stagebus.worker.tools.sources_file import McpEntry

logger = logging.getLogger(__name__)

# The shutdown: pending messages are written, stdin is closed, then SIGTERM, then SIGKILL.
FLUSH_MAX_S: Final = 0.5
END_MAX_S: Final = 2.0
_POLL_S: Final = 0.01
_DRAIN_BYTES: Final = 2**16
# A flood of lines costs the event loop of all runs.
STDERR_LINES_MAX_PER_S: Final = 100
_STDERR_LINE_MAX_CHARS: Final = 4096
# More than a cut line has, and a secret at its end: what is read so far of a line may end within a secret.
_STDERR_PENDING_MAX_BYTES: Final = 5 * _STDERR_LINE_MAX_CHARS

Incoming = MemoryObjectSendStream[SessionMessage | Exception]
Outgoing = MemoryObjectReceiveStream[SessionMessage]


@asynccontextmanager
async def open_pipes(name: str, entry: McpEntry, message_max_bytes: int) -> AsyncIterator[tuple[Any, Any]]:
    """Starts the server. Yields the streams from and to it. Logs what it writes to stderr under its `name`.

    Raises:
        KeyMissing: a secret in `env` is missing.
        OSError: the command cannot be started.
    """
    assert entry.command is not None, "an entry without a URL has a command"
    variables = get_default_environment() | {name: value.read() for name, value in entry.env.items()}
    process = await asyncio.create_subprocess_exec(
        entry.command, *entry.args, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=variables, cwd=entry.cwd,
        start_new_session=True, limit=message_max_bytes,
    )  # fmt: skip
    incoming, reading = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    writing, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    reader = asyncio.create_task(_read(process, incoming, message_max_bytes))
    writer = asyncio.create_task(_write(process, outgoing, incoming))
    logging_errors = asyncio.create_task(_log_stderr(name, process))
    try:
        yield reading, writing
    finally:
        reading.close()
        writing.close()
        # Shielded: a cancellation here must not leave the process behind.
        await asyncio.shield(asyncio.ensure_future(_end(process, reader, writer, logging_errors)))


async def _read(process: Process, incoming: Incoming, message_max_bytes: int) -> None:
    assert process.stdout is not None, "it was started with pipes"
    async with incoming:
        try:
            while line := await process.stdout.readline():
                await incoming.send(_parse(line))
        except ValueError:
            logger.warning(
                "an MCP server sent a message of more than %d bytes (STAGEBUS_EGRESS_RESPONSE_MAX_BYTES); closing its connection",
                message_max_bytes,
            )
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the session is over
    # A server that is blocked on a full pipe would not see the end of its input.
    while await process.stdout.read(_DRAIN_BYTES):
        pass


async def _write(process: Process, outgoing: Outgoing, incoming: Incoming) -> None:
    assert process.stdin is not None, "it was started with pipes"
    try:
        async with outgoing:
            async for sent in outgoing:
                process.stdin.write(sent.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await process.stdin.drain()
    except OSError:
        incoming.close()  # so that pending requests fail


def _parse(line: bytes) -> SessionMessage | Exception:
    """Parses a line. Returns the exception if it is invalid, which the session then reports."""
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(without_lone_surrogates(line), by_name=False))
    except ValueError as exc:
        return exc


async def _log_stderr(name: str, process: Process) -> None:
    """Logs the lines of the server's stderr. Inherited, they would reach the terminal with secrets and escape sequences."""
    assert process.stderr is not None, "it was started with pipes"
    pending, is_cut = b"", False
    second, logged = time.monotonic(), 0
    while data := await process.stderr.read(_DRAIN_BYTES):
        *lines, pending = (pending + data).split(b"\n")
        if is_cut and lines:
            del lines[0]  # the rest of a line whose beginning is logged
            is_cut = False
        if is_cut:
            pending = b""
        elif len(pending) > _STDERR_PENDING_MAX_BYTES:
            lines.append(pending)
            pending, is_cut = b"", True
        if time.monotonic() - second >= 1:
            second, logged = time.monotonic(), 0
        for line in lines[: STDERR_LINES_MAX_PER_S - logged]:
            _log_line(name, line)
        if logged < STDERR_LINES_MAX_PER_S <= logged + len(lines):
            logger.warning("MCP server %s: further lines on its stderr are left out for a second", name)
        logged = min(logged + len(lines), STDERR_LINES_MAX_PER_S)
    _log_line(name, pending)


def _log_line(name: str, line: bytes) -> None:
    # Masked before the cut, which could leave a part of a secret.
    if text := redact(line.decode(errors="replace").strip()):
        logger.info("MCP server %s: %s", name, text[:_STDERR_LINE_MAX_CHARS])


async def _end(
    process: Process, reader: asyncio.Task[None], writer: asyncio.Task[None], logging_errors: asyncio.Task[None]
) -> None:
    assert process.stdin is not None, "it was started with pipes"
    await asyncio.wait({writer}, timeout=FLUSH_MAX_S)
    process.stdin.close()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if await _has_ended(process):
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
    await _has_ended(process)
    await asyncio.wait({logging_errors}, timeout=FLUSH_MAX_S)
    await cancel_and_wait(reader, writer, logging_errors)
    # A process that the server started may hold the pipes open; asyncio has no public way to close our ends.
    process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001


async def _has_ended(process: Process) -> bool:
    """Returns whether the process ends within `END_MAX_S`. Does not use `wait`, which also waits for inherited pipes."""
    with suppress(TimeoutError):
        async with asyncio.timeout(END_MAX_S):
            while process.returncode is None:  # noqa: ASYNC110 - only `wait` could notify us
                await asyncio.sleep(_POLL_S)
    return process.returncode is not None
