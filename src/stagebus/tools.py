"""The public interface for tools; see docs/tools.md.

from stagebus.tools import ToolContext, ToolError, tool
"""

from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext

__all__ = ["ToolContext", "ToolError", "tool"]
