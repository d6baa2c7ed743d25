"""Tools that the request of a run defines. Their calls never run here: a client runs them and gives the results."""

from collections.abc import Iterable
from typing import Any, Final

from stagebus.shared.domain.requests import ClientTool
from stagebus.shared.json_schema.schema_validator import SchemaValidator
from stagebus.worker.tools.call_limiter import CallLimiter
from stagebus.worker.tools.signature import BadArguments, parse_object
from stagebus.worker.tools.tool import ClientTerms, PreparedCall, Tool
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import DESCRIPTION_MAX_BYTES, cut

_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}


class ClientBody:
    """The body of a client's tool: only its arguments are checked here."""

    def __init__(self, definition: ClientTool) -> None:
        self._name = definition.name
        self.description = cut(definition.description, DESCRIPTION_MAX_BYTES)
        self.parameters = definition.parameters or _NO_PARAMETERS
        self._validator = SchemaValidator(self.parameters)

    async def prepare(self, arguments: str, context: ToolContext) -> PreparedCall:  # noqa: ARG002 - of the protocol
        """Checks the arguments of a call.

        Raises:
            BadArguments: they are not a JSON object, or do not fit the definition.
        """
        verdict = await self._validator.validate(parse_object(self._name, arguments))
        if verdict.errors:
            faults = [f"- {text}" for text in verdict.errors]
            raise BadArguments("\n".join([f"The arguments do not fit {self._name}:", *faults]))
        return _never_runs


async def _never_runs() -> Any:
    raise NotImplementedError("a client runs it")


def build_client_tools(definitions: Iterable[ClientTool], result_max_bytes: int) -> dict[str, Tool]:
    """Returns the tools that a request defines, by name."""
    return {
        definition.name: Tool(
            name=definition.name,
            body=ClientBody(definition),
            timeout_s=0,
            result_max_bytes=result_max_bytes,
            limiter=CallLimiter(),
            idempotent=not definition.once,
            is_strict=definition.strict,
            client=ClientTerms(definition.once, definition.expires_in),
        )
        for definition in definitions
    }
