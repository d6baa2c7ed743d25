"""A real MCP server, made with the SDK, as a process of its own: over its pipes, or over HTTP on a free port.

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
    """Wait, telling how far it is."""
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
    """Count, telling how far it is."""
    for number in range(to):
        await ctx.report_progress(number + 1, to, f"at {number + 1}")
    return "counted"


@server.tool(name="with.dots/and more")
def oddly_named() -> str:
    """A name that no provider takes."""
    return "odd"


@server.tool()
def refuse() -> str:
    """Fail."""
    raise ValueError("not today")


@server.tool()
def show() -> CallToolResult:
    """Give what is no text."""
    return CallToolResult(
        content=[
            TextContent(text="see:"),
            ImageContent(data="aGVsbG8=", mime_type="image/png"),
            ResourceLink(uri="file:///a.txt", name="a", mime_type="text/plain"),
        ]
    )


@server.tool()
def long() -> str:
    """Give more than anybody wants."""
    return "x" * 200_000


@server.tool()
def variables() -> list[str]:
    """The environment's names."""
    return sorted(os.environ)


@server.tool()
def secret() -> str:
    """What the operator gave it."""
    return os.environ.get("SECRET", "none")


@server.tool()
async def learn(ctx: Context) -> str:
    """Have one tool more."""

    def learnt() -> str:
        return "learnt"

    server.add_tool(learnt)
    await ctx.notify_tools_changed()
    await ctx.session.send_tool_list_changed()
    return "done"


@server.tool()
def die() -> str:
    """End at once."""
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
