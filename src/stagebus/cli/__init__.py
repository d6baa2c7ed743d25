"""The `stagebus` command; `python -m stagebus.cli` is the same."""
