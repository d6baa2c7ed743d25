"""Where the command once was: scripts that an editable install made before it moved call it here."""

from stagebus.cli.main import main

__all__ = ["main"]
