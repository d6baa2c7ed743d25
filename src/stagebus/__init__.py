"""What people import who write for Stagebus: `stagebus.tools` for tools."""
