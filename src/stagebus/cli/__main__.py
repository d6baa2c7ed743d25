"""Runs the command for `python -m stagebus.cli`."""

from stagebus.cli.main import main

main()
