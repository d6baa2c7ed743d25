"""Reads the operations of a hostile document in a child process.

The parsers hold the interpreter's lock: 4 MB of JSON would stop the worker's event loop for a tenth of a second, and 4 MB
of YAML several seconds. The child has limits on memory and CPU time, none of the worker's secrets, and only the chosen
operations come back.

    stdin    {"chosen": ["listPets"], "base_url": null, "location": "https://…", "fixed": {}, "schema_max_bytes": 65536}
             the document's text
    stdout   {"operation": {…}} for each operation, or {"error": "operation 'listPets': …"}
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.openapi.document_parser import parse_document
from stagebus.worker.tools.openapi.openapi_document import OpenApiOperation, OpenApiParameter, read_operations

READ_MAX_S: Final = 60.0
_CPU_MAX_S: Final = 30
_MEMORY_MAX_BYTES: Final = 2**31
_STRUCTURE: Final = "the document does not have the structure of OpenAPI"
# Of the worker's environment, the child gets no more than it needs to start.
_VARIABLES: Final = ("PATH", "HOME", "LANG", "TMPDIR")


@dataclass(frozen=True, slots=True)
class DocumentReading:
    """The choice of operations; the fields are the arguments of `read_operations`."""

    chosen: list[str]
    base_url: str | None
    location: str
    fixed: dict[str, Any]
    schema_max_bytes: int

    def read(self, text: bytes) -> list[OpenApiOperation]:
        """Reads the operations in this process.

        Raises:
            BadTool: the document is invalid; the message says why.
        """
        try:
            return read_operations(parse_document(text), **asdict(self))
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as exc:
            # For example a list instead of an object. Checking each node would take more code than all the rest.
            raise BadTool(f"{_STRUCTURE} ({str(exc)[:200]})") from exc

    async def read_in_child(self, text: bytes) -> list[OpenApiOperation]:
        """Reads the operations in a child process, which ends with this call.

        Raises:
            BadTool: the document is invalid, or its reader failed or took more than `READ_MAX_S`.
        """
        variables = {name: value for name in _VARIABLES if (value := os.environ.get(name)) is not None}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE, start_new_session=True,
            env=variables | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        try:
            async with asyncio.timeout(READ_MAX_S):
                output, _ = await child.communicate(orjson.dumps(self) + b"\n" + text)
        except TimeoutError:
            raise BadTool(f"the document was not read within {READ_MAX_S:g} s") from None
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if child.returncode != 0:
            raise BadTool(f"the document's reader failed with exit code {child.returncode}")
        operations = []
        for line in output.splitlines():
            operations.append(_decode(line))
            await asyncio.sleep(0)  # there may be megabytes
        return operations


def _decode(line: bytes) -> OpenApiOperation:
    message = orjson.loads(line)
    if "error" in message:
        raise BadTool(message["error"])
    fields = message["operation"]
    parameters = {name: OpenApiParameter(**parameter) for name, parameter in fields.pop("parameters").items()}
    fixed = tuple((OpenApiParameter(**parameter), value) for parameter, value in fields.pop("fixed"))
    return OpenApiOperation(parameters=parameters, fixed=fixed, **fields)


def main() -> None:
    """Reads a document from stdin and writes its operations to stdout."""
    import resource  # POSIX only

    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_MAX_S, _CPU_MAX_S))
    with suppress(ValueError, OSError):  # macOS does not support it
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_MAX_BYTES, _MEMORY_MAX_BYTES))
    reading = DocumentReading(**orjson.loads(sys.stdin.buffer.readline()))
    try:
        messages: list[dict[str, Any]] = [
            {"operation": operation} for operation in reading.read(sys.stdin.buffer.read())
        ]
    except BadTool as exc:
        messages = [{"error": str(exc)}]
    for message in messages:
        sys.stdout.buffer.write(orjson.dumps(message) + b"\n")


if __name__ == "__main__":
    main()
