"""Prints what a command has to say. Texts come from models, tools and gateways, so their control characters are escaped."""

from typing import Any

import typer

from stagebus.shared.runtime.json_text import json_line
from stagebus.shared.runtime.sanitize import sanitize


def echo(text: str, *, keep: str = "", err: bool = False) -> None:
    """Print a line.

    Args:
        keep: control characters to print as they are, such as line ends.
        err: print to stderr.
    """
    typer.echo(sanitize(text, keep), err=err)


def echo_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    typer.echo(json_line(value))
