"""Answers that have to be JSON of a form."""

from typing import Any

import pytest

from stagebus.shared.runtime.exact_json import PARSED_MAX_CHARS
from stagebus.worker.stages.structured_answer import DEPTH_MAX, AnswerFormat

CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def with_schema(schema: Any) -> AnswerFormat:
    return AnswerFormat({"type": "json_schema", "json_schema": {"name": "city", "schema": schema}})


ANY_OBJECT = AnswerFormat({"type": "json_object"})


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"Köln","people":1087353}',
        ' {"name": "Köln"}\n',
        '```json\n{"name": "Köln"}\n```',
        '\n```\n{\n "name": "Köln"\n}\n  ```\n',
        '```JSON5\r\n{"name": "Köln"}\r\n```\r\n',
        '```json {"name": "Köln"} ```',
        '```json\n{"name": "```"}\n```',
        '\ufeff{"name": "Köln"}',
        '\ufeff```json\n{"name": "Köln"}\n```',
        '{"name": "K", "people": 123456789012345678901234567890}',
    ],
)
async def test_answer_that_fits_is_its_json_as_the_model_wrote_it(text: str) -> None:
    checked = await with_schema(CITY).check(text)

    assert checked.faults == ()
    assert checked.text == text[text.index("{") : text.rindex("}") + 1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not JSON"),
        ("It is Köln.", "not JSON"),
        ('{"name": "Kö', "not JSON"),
        ('{"name": "Köln"} There you are.', "not JSON"),
        ('{"people": NaN}', "not JSON"),
        ('{"people": 1e999}', "not JSON"),
        ('{"people": ' + "9" * 5000 + "}", "not JSON"),
        ('{"name": "\\ud800"}', "not JSON"),
        ('{"name": "' + "x" * PARSED_MAX_CHARS + '"}', "too many"),
        ("[" * 100_000, "not JSON"),
        ('{"people": 5}', "name"),
        ('{"name": "Köln", "people": "many"}', "people"),
        ('{"name": "Köln", "river": "Rhine"}', "river"),
        ('["Köln"]', "object"),
    ],
)
async def test_answer_that_does_not_fit_has_faults_in_words(text: str, fault: str) -> None:
    checked = await with_schema(CITY).check(text)

    assert fault in checked.faults[0]


async def test_nested_answer_is_limited() -> None:
    """A reader of the run has to parse it."""
    fits, too_deep = ("[" * depth + "]" * depth for depth in (DEPTH_MAX, DEPTH_MAX + 1))

    assert (await with_schema({}).check(fits)).faults == ()
    assert "nested" in (await with_schema({}).check(too_deep)).faults[0]


async def test_any_object_is_an_object() -> None:
    assert (await ANY_OBJECT.check('{"a": [1]}')).faults == ()
    assert "object" in (await ANY_OBJECT.check("[1]")).faults[0]


def test_prompt_describes_the_form() -> None:
    assert '"additionalProperties": false' in with_schema(CITY).prompt
    assert "one JSON object" in ANY_OBJECT.prompt
