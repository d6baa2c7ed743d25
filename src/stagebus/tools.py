"""The public interface for tools; see docs/tools.md.

from stagebus.tools import Deferred, ToolContext, ToolError, tool
"""

from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred

__all__ = ["Deferred", "ToolContext", "ToolError", "tool"]
