"""Answers out of public reports. They are not part of the repository; each kind has a small case in another test."""

from typing import Any

import pytest

from stagebus.shared.domain.usage import Usage
from stagebus.worker.model.chat_response import ChatResponseReader
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from tests.support.recorded_inputs import CASES

FOLDER = CASES / "sse"
STRING = {"type": "string"}
TOOLS: dict[str, dict[str, Any]] = {
    "weather_now": {"properties": {"city": STRING}, "required": ["city"]},
    "add": {
        "properties": {"numbers": {"type": "array", "items": {"type": "integer"}}, "precise": {"type": "boolean"}},
        "required": ["numbers"],
    },
    "write_file": {"properties": {"path": STRING, "text": STRING}, "required": ["path", "text"]},
    "get_time": {"properties": {}},
    "get_user": {"properties": {"user_id": {"type": "integer"}}, "required": ["user_id"]},
}
PARIS = ("weather_now", '{"city":"Paris"}')
CALLS = {
    "bad_escape": [("write_file", r'{"path":"/tmp/x","text":"match \\d+ here"}')],
    "raw_newline": [("write_file", r'{"path":"/tmp/x","text":"line one\nline two\tend"}')],
    "float_int": [("get_user", '{"user_id":5}')],
    "null_opt": [("add", '{"numbers":[1,2]}')],
    "str_array": [("add", '{"numbers":[1,2,3]}')],
    "early_finish_call": [PARIS, ("weather_now", '{"city":"Tokyo"}')],
    "txt_glm_noarg": [("get_time", "{}")],
    "txt_qwen_py": [("add", '{"numbers":[1,2,3],"precise":true}')],
    "txt_qwen_pylist": [("add", '{"numbers":[1,2,3]}')],
    "txt_qwen_codebody": [
        ("write_file", '{"path":"/tmp/x.html","text":"<function=foo>bar</function> and </parameter-like>"}')
    ],
    "trail_tag": [PARIS], "dsml_args": [PARIS], "harmony_name": [PARIS], "glm_name_arg": [PARIS],
    "txt_dsml_v4": [PARIS], "txt_dsml_ascii": [PARIS], "txt_glm_missing_open": [PARIS], "txt_gemma4": [PARIS],
}  # fmt: skip
TEXTS = {
    "early_finish_slow": "one two three",
    "nanobot_progress": "I could not look it up, but hello.",
    "ping_message": "Hi",
    "wrapped_data": "Hello wrapped",
}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no cases in {FOLDER}")


def merged(name: str) -> MergedAnswer:
    reader, merger = ChatResponseReader(100_000), DeltaMerger(tuple(TOOLS), schemas=TOOLS)
    for chunk in [*reader.feed((FOLDER / f"{name}.sse").read_bytes()), *reader.finish()]:
        merger.add(chunk)
    return merger.result()


@pytest.mark.parametrize("name", CALLS)
def test_reported_case_has_its_calls(name: str) -> None:
    answer = merged(name)

    assert [(call.name, call.arguments.replace(": ", ":")) for call in answer.tool_calls] == CALLS[name]
    assert answer.text == ""


@pytest.mark.parametrize("name", TEXTS)
def test_reported_case_has_its_text(name: str) -> None:
    assert merged(name).text == TEXTS[name]


@pytest.mark.parametrize("name", ["usage_split", "usage_zero_last"])
def test_reported_case_has_its_usage(name: str) -> None:
    assert merged(name).tokens == Usage(prompt_tokens=100, completion_tokens=20, total_tokens=120)
