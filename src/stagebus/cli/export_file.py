"""Writes an exported run to stdout or to a file, which gets its name only once it is complete."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from stagebus.shared.runtime.sanitize import sanitize


def write_document(parts: Iterable[bytes], path: Path | None) -> None:
    """Write the parts of a JSON document to the file, or to stdout.

    Raises:
        typer.BadParameter: the file cannot be written.
    """
    if path is None:
        for text in _texts(parts):
            typer.echo(text, nl=False)
        typer.echo()
        return
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(_texts(parts))
        unfinished.replace(path)
    except OSError as exc:
        raise typer.BadParameter(f"{path} cannot be written: {exc.strerror or exc}") from exc
    finally:
        unfinished.unlink(missing_ok=True)


def _texts(parts: Iterable[bytes]) -> Iterator[str]:
    """Yield the parts as text. Control characters, which only strings can contain, become JSON's escapes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for part in parts:
        yield sanitize(decoder.decode(part))
    yield decoder.decode(b"", final=True)
