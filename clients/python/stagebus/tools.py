"""For those who write tools; docs/tools.md shows how.

from stagebus.tools import ToolContext, ToolError, tool
"""

from worker.tools.context import ToolContext
from worker.tools.functions import tool
from worker.tools.tool import ToolError

__all__ = ["ToolContext", "ToolError", "tool"]
