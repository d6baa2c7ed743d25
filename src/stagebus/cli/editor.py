"""Lets a person change a text in the editor of VISUAL or EDITOR, as git and kubectl do."""

import asyncio
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Final

from stagebus.cli.exit_codes import UsageError

_EDITORS: Final = ("sensible-editor", "nano", "vim", "vi")


async def edit(text: str, suffix: str) -> str:
    """Open the text in an editor and return it as it was saved.

    Args:
        suffix: of the file, such as `.json`, from which the editor knows the language.

    Raises:
        UsageError: there is no editor, or it failed; the message says what to set.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, _EDITORS), "")
    if not command:
        raise UsageError("no editor was found; set EDITOR to one")
    # A folder of its own: some editors replace the file, or write a second one beside it.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"arguments{suffix}"
        file.write_text(text, encoding="utf-8")
        try:
            process = await asyncio.create_subprocess_exec(*shlex.split(command), file)
        except (OSError, ValueError) as exc:
            raise UsageError(f"the editor {command!r} cannot be started; set EDITOR to another one") from exc
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        if code != 0:
            raise UsageError(f"the editor {command!r} ended with code {code}; nothing was changed")
        return file.read_text(encoding="utf-8")
