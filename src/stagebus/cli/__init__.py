"""The `stagebus` command, also available as `python -m stagebus.cli`."""
