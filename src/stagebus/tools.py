"""For those who write tools; docs/tools.md shows how.

from stagebus.tools import ToolContext, ToolError, tool
"""

from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext

__all__ = ["ToolContext", "ToolError", "tool"]
