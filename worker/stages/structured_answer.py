"""Checks that an answer is JSON of the form that the run asked for; sans-IO except for long checks, which run in a thread.

    {"type": "json_object"}                                             any JSON object
    {"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}  JSON that fits the schema

A provider that knows the format gets it with the request. For others, and for a second try, it is described in the prompt.
Spec: https://platform.openai.com/docs/guides/structured-outputs
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from stagebus.shared.json_schema.schema_validator import SchemaValidator
from stagebus.shared.runtime.exact_json import parse_json

Message = dict[str, Any]

_FENCED: Final = re.compile(r"```\w*\s(.*)```", re.DOTALL)
_BYTE_ORDER_MARK: Final = "\ufeff"
_OBJECT: Final = {"type": "object"}
_FAULTS_MAX: Final = 5
# Deeper JSON is beyond what readers of a run can be expected to parse.
DEPTH_MAX: Final = 100
_PROMPT: Final = "Your final answer has to be {form}. Write nothing before or after the JSON, and no code fence."
_ANY_OBJECT: Final = "one JSON object"
_WITH_SCHEMA: Final = "JSON that fits this JSON Schema:\n{schema}\n"
_AGAIN: Final = """\
That answer cannot be used:
{faults}
Answer again from the start with the whole JSON and nothing else."""


class CheckedAnswer(NamedTuple):
    """An answer without a code fence around it, and what is wrong with it, in words for the model."""

    text: str
    faults: Sequence[str] = ()


class AnswerFormat:
    """The form of a run's answer.

    Args:
        response_format: as in chat completions, but not `{"type": "text"}`.
    """

    def __init__(self, response_format: dict[str, Any]) -> None:
        described = response_format.get("json_schema") or {}
        self._schema = described.get("schema")
        self._validator = SchemaValidator(_OBJECT if self._schema is None else self._schema)
        self.is_any_object = self._schema is None

    @property
    def prompt(self) -> str:
        """The instructions for a model whose provider does not know the format."""
        if self._schema is None:
            return _PROMPT.format(form=_ANY_OBJECT)
        return _PROMPT.format(form=_WITH_SCHEMA.format(schema=json.dumps(self._schema, ensure_ascii=False)).rstrip())

    async def check(self, text: str) -> CheckedAnswer:
        """Checks an answer."""
        text = text.strip().removeprefix(_BYTE_ORDER_MARK).lstrip()
        fenced = _FENCED.fullmatch(text)
        text = fenced[1].strip() if fenced else text
        try:
            value = parse_json(text)
        except ValueError as exc:
            return CheckedAnswer(text, [f"It is not JSON: {exc}."])
        if _is_deeper_than(value, DEPTH_MAX):
            return CheckedAnswer(text, [f"It is nested more than {DEPTH_MAX} levels deep."])
        verdict = await self._validator.validate(value)
        return CheckedAnswer(text, verdict.errors[:_FAULTS_MAX])


def correction_messages(answer: str, faults: Sequence[str]) -> list[Message]:
    """Returns the messages that ask the model for a better answer."""
    rejected = [{"role": "assistant", "content": answer}] if answer else []
    return [*rejected, {"role": "user", "content": _AGAIN.format(faults="\n".join(f"- {fault}" for fault in faults))}]


def _is_deeper_than(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [child for parent in level for child in _children(parent)]
    return bool(level)


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
