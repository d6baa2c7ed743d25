"""The stored form of a request: what the gateway writes the worker reads."""

import orjson
import pytest
from pydantic import ValidationError

from stagebus.shared.domain.requests import PROMPT_EXCERPT_CHARS, RunRequest, parse_models, prompt_excerpt
from stagebus.shared.domain.runs import ROUNDS_MAX

MESSAGES = [{"role": "user", "content": "hi"}]
FULL = RunRequest(
    model="m",
    messages=[{"role": "system", "content": "be brief"}, *MESSAGES],
    tools=["get_weather"],
    tool_choice={"type": "function", "function": {"name": "get_weather"}},
    parallel_tool_calls=False,
    synthesis=False,
    max_tokens=(100, None),
    temperature=(0.0, 1.5),
    max_rounds=ROUNDS_MAX,
    timeout_s=1.5,
    metadata={"a": "b"},
)


@pytest.mark.parametrize("request_", [FULL, RunRequest(model=("a", "b"), messages=MESSAGES, timeout_s=60)])
def test_request_survives_its_storage(request_: RunRequest) -> None:
    assert RunRequest.model_validate(orjson.loads(orjson.dumps(request_.model_dump(mode="json")))) == request_


def test_unknown_fields_of_a_request_are_ignored() -> None:
    """A worker of an older version executes the run and ignores what it does not know."""
    stored = {**FULL.model_dump(mode="json"), "from_the_future": {"n": 1}}

    assert RunRequest.model_validate(orjson.loads(orjson.dumps(stored))) == FULL


def test_defaults_leave_all_to_model_and_worker() -> None:
    plain = RunRequest(model="m", messages=MESSAGES, timeout_s=60)

    assert plain.tools is None, "all that the worker has; an empty list would be none"
    assert (plain.tool_choice, plain.synthesis, plain.max_rounds) == ("auto", True, 1)
    assert plain.max_tokens == plain.temperature == (None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_rounds": 0},
        {"max_rounds": ROUNDS_MAX + 1},
        {"max_tokens": [1]},
        {"max_tokens": [1, 2, 3]},
        {"temperature": 0.5},
        {"metadata": {"a": {"b": "c"}}},
        {"messages": "hi"},
    ],
)
def test_invalid_stored_request_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        RunRequest.model_validate({"model": "m", "messages": MESSAGES, "timeout_s": 60, **wrong})


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("demo:delay_ms=0,calls=2", "demo:delay_ms=0,calls=2"),
        (("a", "a"), "a"),
        (("a", "demo:x=1,y=2"), "extraction=a,synthesis=demo:x=1,y=2"),
    ],
)
def test_models_of_the_stages_are_one_text(model: str | tuple[str, str], text: str) -> None:
    request = RunRequest(model=model, messages=MESSAGES, timeout_s=60)
    parsed = parse_models(request.model_text)

    assert request.model_text == text
    assert (parsed if isinstance(parsed, str) else tuple(parsed.values())) == (text if parsed == text else model)


def test_request_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FULL.model = "other"


@pytest.mark.parametrize(
    ("messages", "excerpt"),
    [
        ([], ""),
        ([{"role": "system", "content": "x"}], ""),
        ([{"role": "user", "content": "first"}, {"role": "user", "content": "last"}], "last"),
        ([{"role": "user", "content": "x" * 1000}], "x" * PROMPT_EXCERPT_CHARS),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"},
                                          {"type": "text", "text": "b"}]}],
            "a b",
        ),
    ],
)  # fmt: skip
def test_prompt_excerpt(messages: list[dict[str, object]], excerpt: str) -> None:
    assert prompt_excerpt(messages) == excerpt
