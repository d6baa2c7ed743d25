"""Creates the tool sources of a worker from its tools file."""

from pathlib import Path

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.openapi.openapi_source import OpenApiSource
from stagebus.worker.tools.sources import ToolSource
from stagebus.worker.tools.sources_file import KIND, McpEntry, OpenApiEntry, SourcesFile


def load_sources(settings: Settings, egress: Egress) -> list[ToolSource]:
    """Creates the sources of the tools file; none if no file is set.

    Raises:
        BadTool: the file is invalid, or a variable that it names is not set; the message says what to change.
    """
    if settings.tools_file is None:
        return []
    file = KIND.read(settings.tools_file, SourcesFile)
    KIND.check_variables(settings.tools_file, file)
    folder = settings.tools_file.parent
    sources = [_mcp_source(name, entry, settings, egress) for name, entry in file.mcp.items()]
    return sources + [_openapi_source(name, entry, folder, settings, egress) for name, entry in file.openapi.items()]


def _mcp_source(name: str, entry: McpEntry, settings: Settings, egress: Egress) -> ToolSource:
    try:
        from stagebus.worker.tools.mcp.mcp_source import McpSource  # takes 0.8 s and needs an extra
    except ModuleNotFoundError as exc:
        raise BadTool(f"mcp.{name}: MCP servers need another package: pip install 'stagebus[mcp]'") from exc
    return McpSource(name, entry, egress, settings.tool_schema_max_bytes, settings.call_wait_default_s)


def _openapi_source(name: str, entry: OpenApiEntry, folder: Path, settings: Settings, egress: Egress) -> ToolSource:
    if not entry.is_remote:
        entry = entry.model_copy(update={"document": str(folder / entry.document)})
    return OpenApiSource(name, entry, settings, egress)
