"""A real MCP server, made with the SDK, that runs as its own process: over stdio, or over HTTP on a free port.

python -m tests.support.mcp_server stdio
python -m tests.support.mcp_server http     prints `listening on http://127.0.0.1:<port>/mcp`
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult, ImageContent, ResourceLink, TextContent, ToolAnnotations
from pydantic import Field

server = MCPServer("reference", log_level="CRITICAL")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: Annotated[int, Field(description="the other one")] = 1) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
async def wait(seconds: float, folder: str = "") -> str:
    """Wait, and note in files that it began and was cancelled."""
    if folder:
        (Path(folder) / "began").touch()
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if folder:
            (Path(folder) / "cancelled").touch()
        raise
    return "waited"


@server.tool()
async def count(to: int, ctx: Context) -> str:
    """Count, and report progress."""
    for number in range(to):
        await ctx.report_progress(number + 1, to, f"at {number + 1}")
    return "counted"


@server.tool(name="with.dots/and more")
def oddly_named() -> str:
    """Has a name that no provider accepts."""
    return "odd"


@server.tool()
def refuse() -> str:
    """Fail."""
    raise ValueError("not today")


@server.tool()
def show() -> CallToolResult:
    """Return content that is not text."""
    return CallToolResult(
        content=[
            TextContent(text="see:"),
            ImageContent(data="aGVsbG8=", mime_type="image/png"),
            ResourceLink(uri="file:///a.txt", name="a", mime_type="text/plain"),
        ]
    )


@server.tool()
def long() -> str:
    """Return a very long text."""
    return "x" * 200_000


@server.tool()
def variables() -> list[str]:
    """Return the names of the environment variables."""
    return sorted(os.environ)


@server.tool()
def secret() -> str:
    """Return the secret that the operator configured."""
    return os.environ.get("SECRET", "none")


@server.tool()
async def learn(ctx: Context) -> str:
    """Add a tool to the server."""

    def learnt() -> str:
        return "learnt"

    server.add_tool(learnt)
    await ctx.notify_tools_changed()
    await ctx.session.send_tool_list_changed()
    return "done"


@server.tool()
def die() -> str:
    """End the process."""
    os._exit(1)


def main(kind: str, *rest: str) -> None:
    if kind == "stdio":
        server.run("stdio")
        return
    app: Any = server.streamable_http_app()
    config = uvicorn.Config(app, host="127.0.0.1", port=int(rest[0]) if rest else 0, log_level="warning")

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"listening on http://127.0.0.1:{port}/mcp", flush=True)  # noqa: T201

    Announcing(config).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
