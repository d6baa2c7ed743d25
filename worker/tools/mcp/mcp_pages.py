"""Reads the list of tools of an MCP server page by page, within limits."""

import logging
import time
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from mcp import Client
from mcp_types import ListToolsResult, Tool

from stagebus.worker.tools.sources_file import McpEntry

logger = logging.getLogger(__name__)

TOOLS_MAX: Final = 500
# A listing ends after this many tools, offered or not, or pages, or after this share of the time limit for it.
LISTED_MAX: Final = 5000
PAGES_MAX: Final = 500
LIST_TIME_SHARE: Final = 0.3


class ListedTools(NamedTuple):
    """The tools of a server that its entry offers, and the names of all."""

    offered: list[Tool]
    names: set[str]


async def list_tools(client: Client, name: str, entry: McpEntry, *, warns: bool) -> ListedTools:
    """Returns the tools of a server.

    Args:
        name: the server's, for the log.
        warns: whether to log a list that does not end.
    """
    tool_by_name: dict[str, Tool] = {}
    names: set[str] = set()  # also those of tools that are not offered
    async for page in _pages(client, name, LIST_TIME_SHARE * entry.connect_timeout_s, warns=warns):
        for tool in page.tools:
            if tool.name not in names and entry.offers(tool.name) and len(tool_by_name) < TOOLS_MAX:
                tool_by_name[tool.name] = tool
            names.add(tool.name)
        if len(tool_by_name) >= TOOLS_MAX or len(names) >= LISTED_MAX:
            break
    return ListedTools(list(tool_by_name.values()), names)


async def _pages(client: Client, name: str, time_max_s: float, *, warns: bool) -> AsyncIterator[ListToolsResult]:
    """Yields the pages of a listing until the server names no further one, or one that was there already."""
    deadline = time.monotonic() + time_max_s
    cursors: set[str | None] = set()
    cursor: str | None = None
    while cursor not in cursors:
        cursors.add(cursor)
        page = await client.list_tools(cursor=cursor)
        yield page
        cursor = page.next_cursor or None
        if len(cursors) == PAGES_MAX or time.monotonic() > deadline:
            if warns:
                logger.warning("MCP server %s: its list of tools does not end; the rest is left out", name)
            return
