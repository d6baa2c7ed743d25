from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.gateway.api.schemas.create_run import METADATA_MAX, named_tools, parse_create_run, unknown_tools
from stagebus.gateway.api.schemas.validation import ERRORS_MAX
from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.errors import InvalidRequest

SETTINGS = Settings(model="house-model", run_timeout_s=60, run_timeout_max_s=120)
HELLO = {"user_prompt": "Hello"}


def parse(**fields: Any) -> RunRequest:
    return parse_create_run(fields, SETTINGS)


def wrong_fields(body: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        parse_create_run(body, SETTINGS)
    return [error["field"] for error in caught.value.errors]


def test_defaults_are_filled_in() -> None:
    assert parse(**HELLO) == RunRequest(
        model="house-model",
        messages=[{"role": "user", "content": "Hello"}],
        tools=None,
        tool_choice="auto",
        parallel_tool_calls=None,
        synthesis=True,
        max_tokens=(None, None),
        temperature=(None, None),
        max_rounds=1,
        timeout_s=60,
        metadata={},
    )


@pytest.mark.parametrize(
    ("model", "stored"),
    [
        ("a", "a"),
        ({"extraction": "a", "synthesis": "b"}, ("a", "b")),
        ({"synthesis": "b"}, ("house-model", "b")),
        ({}, ("house-model", "house-model")),
    ],
)
def test_stages_can_have_different_models(model: Any, stored: Any) -> None:
    assert parse(**HELLO, model=model).model == stored


@pytest.mark.parametrize("model", [7, ["a", "b"], {"tools": "a"}, {"extraction": ""}, "a b"])
def test_invalid_model_is_rejected(model: Any) -> None:
    assert wrong_fields({**HELLO, "model": model})[0].startswith("model")


def test_model_is_required_without_a_default() -> None:
    file = {"providers": {"p": {"base_url": "http://127.0.0.1:1", "models": ["x/*"]}}}
    with pytest.raises(InvalidRequest, match="model: required, because no default model is configured"):
        parse_create_run(HELLO, SETTINGS, Providers(ProvidersFile.model_validate(file)))


def test_prompts_become_messages() -> None:
    assert parse(user_prompt="Hello", system_prompt="Be brief.").messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]


def test_messages_are_stored_unchanged() -> None:
    """No field is added: some providers reject unexpected nulls."""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                     {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "A tree."},
        {"role": "user", "content": "Thanks", "name": "ann"},
    ]  # fmt: skip

    assert parse(messages=messages).messages == messages


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ("get_weather", {"type": "function", "function": {"name": "get_weather"}}),
        (
            {"type": "function", "function": {"name": "get_weather"}},
            {"type": "function", "function": {"name": "get_weather"}},
        ),
    ],
)
def test_tool_choice_is_stored_in_the_providers_format(given: Any, stored: Any) -> None:
    assert parse(**HELLO, tool_choice=given).tool_choice == stored


def test_numbers_are_for_both_stages_or_one_each() -> None:
    assert parse(**HELLO, max_tokens=100, temperature=0).max_tokens == (100, 100)
    assert parse(**HELLO, max_tokens=100, temperature=0).temperature == (0.0, 0.0)
    assert parse(**HELLO, max_tokens=[10, 200], temperature=[0, 1.5]).max_tokens == (10, 200)
    assert parse(**HELLO, max_tokens=[None, 200]).max_tokens == (None, 200)


SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": True}}


@pytest.mark.parametrize(
    ("name", "given", "stored"),
    [
        ("top_p", 0.5, (0.5, 0.5)),
        ("top_p", [None, 1], (None, 1.0)),
        ("stop", "END", (["END"], ["END"])),
        ("stop", ["END"], (["END"], ["END"])),
        ("stop", ["a", "b", "c"], (["a", "b", "c"], ["a", "b", "c"])),
        ("stop", [None, ["a", "b"]], (None, ["a", "b"])),
        ("stop", [["a"], ["b"]], (["a"], ["b"])),
        ("seed", -1, (-1, -1)),
        ("reasoning_effort", ["none", "xhigh"], ("none", "xhigh")),
        ("verbosity", "low", ("low", "low")),
        ("service_tier", "flex", ("flex", "flex")),
    ],
)
def test_model_parameters_are_for_both_stages_or_one_each(name: str, given: Any, stored: Any) -> None:
    assert getattr(parse(**HELLO, **{name: given}), name) == stored


def test_response_format_is_stored_in_the_form_of_chat_completions() -> None:
    assert parse(**HELLO, response_format=SCHEMA_FORMAT).response_format == SCHEMA_FORMAT
    assert parse(**HELLO, response_format={"type": "json_object"}).response_format == {"type": "json_object"}
    assert parse(**HELLO, response_format={"type": "text"}).response_format is None


def test_request_without_newer_parameters_is_stored_as_by_older_versions() -> None:
    """Otherwise a request that is repeated during an upgrade would differ from the first one."""
    newer = {"top_p", "stop", "seed", "reasoning_effort", "verbosity", "service_tier", "response_format"}

    assert not newer & parse(**HELLO).model_dump(mode="json").keys()
    assert newer <= {*RunRequest.model_fields}


def test_stop_is_rejected_if_a_model_does_not_take_it() -> None:
    """Without it the answer would be another one. A fallback counts as well."""
    models = [{"name": "a", "fallbacks": ["b"]}, {"name": "b", "leave_out": ["stop", "seed"]}, "c"]
    file = {"providers": {"p": {"base_url": "http://127.0.0.1:1/v1", "models": models}}}
    providers = Providers(ProvidersFile.model_validate(file))

    for model in ("a", "b", {"extraction": "c", "synthesis": "b"}):
        with pytest.raises(InvalidRequest) as caught:
            parse_create_run({**HELLO, "model": model, "stop": "x", "seed": 1}, SETTINGS, providers)
        assert [error["field"] for error in caught.value.errors] == ["stop"]
    unaffected = {**HELLO, "model": {"extraction": "c", "synthesis": "b"}, "stop": [["x"], None]}
    assert parse_create_run(unaffected, SETTINGS, providers).stop == (["x"], None)


@pytest.mark.parametrize(
    "request_", [HELLO, {**HELLO, "tools": ["a"], "max_tokens": [1, 2], "timeout_s": 5, "stop": "x"}]
)
def test_stored_request_round_trip(request_: dict[str, Any]) -> None:
    stored = parse_create_run(request_, SETTINGS)

    assert RunRequest.model_validate_json(stored.model_dump_json()) == stored


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["user_prompt"]),
        ({"user_prompt": None}, ["user_prompt"]),
        ({"user_prompt": ""}, ["user_prompt"]),
        ({"user_prompt": 5}, ["user_prompt"]),
        ({**HELLO, "messages": [{"role": "user", "content": "x"}]}, ["user_prompt"]),
        ({"system_prompt": "x", "messages": [{"role": "user", "content": "x"}]}, ["system_prompt"]),
        ({**HELLO, "model": "two words"}, ["model"]),
        ({**HELLO, "model": "line\nbreak"}, ["model"]),
        ({**HELLO, "colour": "red"}, ["colour"]),
        ({**HELLO, "base_url": "http://elsewhere"}, ["base_url"]),
        ({"messages": []}, ["messages"]),
        ({"messages": "x"}, ["messages"]),
        ({"messages": [{"role": "user"}]}, ["messages.0.content"]),
        ({"messages": [{"role": "bob", "content": "x"}]}, ["messages.0"]),
        ({"messages": [{"role": "user", "content": 7}]}, ["messages.0.content"]),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, ["messages.0.content.0.text"]),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, ["messages.0.content.0"]),
        ({"messages": [{"role": "assistant"}]}, ["messages.0"]),
        ({"messages": [{"role": "user", "content": "x", "cache": 1}]}, ["messages.0.cache"]),
        ({**HELLO, "tools": ["a", "b", "a"]}, ["tools.2"]),
        ({**HELLO, "tools": ["a b"]}, ["tools.0"]),
        ({**HELLO, "tools": "get_weather"}, ["tools"]),
        ({**HELLO, "tools": [], "tool_choice": "required"}, ["tool_choice"]),
        ({**HELLO, "tools": ["a"], "tool_choice": "b"}, ["tool_choice"]),
        ({**HELLO, "tool_choice": {"type": "function", "function": {}}}, ["tool_choice.function.name"]),
        ({**HELLO, "tool_choice": 1}, ["tool_choice"]),
        ({**HELLO, "max_tokens": 0}, ["max_tokens"]),
        ({**HELLO, "max_tokens": "100"}, ["max_tokens"]),
        ({**HELLO, "max_tokens": 1.5}, ["max_tokens"]),
        ({**HELLO, "max_tokens": True}, ["max_tokens"]),
        ({**HELLO, "max_tokens": [1]}, ["max_tokens"]),
        ({**HELLO, "max_tokens": [1, 2, 3]}, ["max_tokens"]),
        ({**HELLO, "max_tokens": [1, -2]}, ["max_tokens.1"]),
        ({**HELLO, "max_tokens": 10**300}, ["max_tokens"]),
        ({**HELLO, "temperature": 2.1}, ["temperature"]),
        ({**HELLO, "top_p": 0}, ["top_p"]),
        ({**HELLO, "top_p": 1.1}, ["top_p"]),
        ({**HELLO, "stop": ""}, ["stop"]),
        ({**HELLO, "stop": []}, ["stop"]),
        ({**HELLO, "stop": ["a"] * 5}, ["stop"]),
        ({**HELLO, "stop": ["a", None]}, ["stop.0"]),
        ({**HELLO, "stop": [["a"], []]}, ["stop.1"]),
        ({**HELLO, "seed": 2**63}, ["seed"]),
        ({**HELLO, "reasoning_effort": "huge"}, ["reasoning_effort"]),
        ({**HELLO, "verbosity": ["low"]}, ["verbosity"]),
        ({**HELLO, "service_tier": "a b"}, ["service_tier"]),
        ({**HELLO, "response_format": "json"}, ["response_format"]),
        ({**HELLO, "response_format": {"type": "xml"}}, ["response_format"]),
        ({**HELLO, "response_format": {"type": "json_schema"}}, ["response_format.json_schema"]),
        ({**HELLO, "synthesis": "yes"}, ["synthesis"]),
        ({**HELLO, "synthesis": 1}, ["synthesis"]),
        ({**HELLO, "max_rounds": 0}, ["max_rounds"]),
        ({**HELLO, "max_rounds": 17}, ["max_rounds"]),
        ({**HELLO, "timeout_s": 0}, ["timeout_s"]),
        ({**HELLO, "timeout_s": 121}, ["timeout_s"]),
        ({**HELLO, "metadata": {"a": 1}}, ["metadata.a"]),
        ({**HELLO, "metadata": {"a": "x" * 513}}, ["metadata.a"]),
        ({**HELLO, "metadata": {f"k{i}": "x" for i in range(METADATA_MAX + 1)}}, ["metadata"]),
        ({"user_prompt": 1, "synthesis": 2, "max_rounds": 3.5}, ["synthesis", "max_rounds", "user_prompt"]),
    ],
)
def test_invalid_field_is_named(body: dict[str, Any], fields: list[str]) -> None:
    assert wrong_fields(body) == fields


def test_validation_errors_have_limits() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_create_run({"x" * 10_000 + str(i): 1 for i in range(100)}, SETTINGS)

    assert len(caught.value.errors) == ERRORS_MAX
    assert len(str(caught.value.errors)) < 10_000


def test_validation_errors_do_not_contain_the_input() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_create_run({"user_prompt": ["s3cret"]}, SETTINGS)

    assert "s3cret" not in str(caught.value) + str(caught.value.errors) + str(caught.value.__cause__)


def test_named_tools_include_tool_choice() -> None:
    assert named_tools(parse(**HELLO)) == []
    assert named_tools(parse(**HELLO, tools=["a", "b"])) == ["a", "b"]
    assert named_tools(parse(**HELLO, tool_choice="c")) == ["c"]


def test_unknown_tool_error_names_the_field() -> None:
    error = unknown_tools(parse(**HELLO, tools=["a", "b"]), {"b"})

    assert [e["field"] for e in error.errors] == ["tools.1"]
    assert [e["field"] for e in unknown_tools(parse(**HELLO, tool_choice="c"), {"c"}).errors] == ["tool_choice"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "model", "user_prompt", "system_prompt", "messages", "tools", "tool_choice", "parallel_tool_calls", "synthesis",
    "max_tokens", "temperature", "max_rounds", "timeout_s", "metadata", "top_p", "stop", "seed", "reasoning_effort",
    "response_format",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_body_is_accepted_or_rejected(body: dict[str, Any]) -> None:
    try:
        stored = parse_create_run(body, SETTINGS)
    except InvalidRequest:
        return
    assert RunRequest.model_validate_json(stored.model_dump_json()) == stored
