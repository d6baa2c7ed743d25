"""Arguments that are nearly JSON."""

import json

import pytest

from stagebus.worker.model.compat.call_arguments import as_object, clean_arguments

PARIS = '{"city": "Paris"}'
MEANT = {"city": "Paris"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{"path": "/x", "text": "one\ntwo\tend"}', {"path": "/x", "text": "one\ntwo\tend"}),
        (r'{"text": "match \d+ and \"this\" \\ \u00e9 \u12"}', {"text": 'match \\d+ and "this" \\ é \\u12'}),
        (r"""{"text": "it\'s"}""", {"text": "it's"}),
        (PARIS + "</tool_call>", MEANT),
        (PARIS + "\n</parameter>\n</function>", MEANT),
        (PARIS + "<|tool_call_end|>", MEANT),
        (PARIS + "<｜tool▁call▁end｜>", MEANT),
        (PARIS + "</｜DSML｜invoke", MEANT),
        (PARIS + "}", MEANT),
        ("<tool_call>" + PARIS, MEANT),
        (f"```json\n{PARIS}\n```", MEANT),
        (PARIS + PARIS, MEANT),
        (PARIS + "\n" + PARIS + "</tool_call>", MEANT),
        ("{}" + PARIS, MEANT),
        (PARIS + "{}", MEANT),
        ('{"city": "Paris</｜DSML｜parameter', MEANT),
        ('{"city": "Paris"</parameter>', MEANT),
        ('{"city": "Paris</｜DSML｜parameter>"}', MEANT),
        (r"{\"city\": \"Paris\"}", MEANT),
        ("{'city': 'Paris', 'wet': True, 'days': [1, 2,],}", MEANT | {"wet": True, "days": [1, 2]}),
        ('{"text": "a\nb", "x": "\\ud800"}', {"text": "a\nb", "x": "\ufffd"}),
    ],
)
def test_nearly_json_with_one_plain_meaning_is_read(written: str, meant: dict) -> None:
    assert json.loads(clean_arguments(written)) == meant
    assert json.loads(as_object(written)) == meant


@pytest.mark.parametrize(
    "written",
    [
        '{"text": "He said "hello" and left"}',
        '{"text": "say "" now"}',
        '{"city": "Paris"}{"city": "Tokyo"}',
        '{"city": "Par',
        '{"n": NaN}',
        '["Paris"]',
        "Paris",
        "{f(): 1}",
        "{" * 100_000,
        '{"a":' * 100_000,
        '{"a":' + "[" * 300 + "]" * 300 + "}",
    ],
)
def test_other_text_stays_and_goes_back_to_a_provider_as_an_object(written: str) -> None:
    assert clean_arguments(written) == written
    assert json.loads(as_object(written)) == {"invalid_json": written}


def test_json_stays_as_the_model_wrote_it() -> None:
    for written in (PARIS, '{ "n" : 5.0,\n "text": "</tool_call>" }', '{"n": 123456789012345678901234567890}'):
        assert clean_arguments(written) == as_object(written) == written
    assert as_object("") == as_object(" ") == "{}"


def test_long_arguments_are_not_parsed() -> None:
    """They are refused, and the provider gets back the beginning of what the model wrote."""
    written = json.dumps({"text": "x" * 2**20})

    assert clean_arguments(written) is written
    assert json.loads(as_object(written)) == {"invalid_json": f"{written[:1000]}…"}
