import json
from itertools import islice

import pytest

from stagebus.worker.demo.demo_reply import DemoCall, reply_to, stage_of
from stagebus.worker.demo.demo_script import DemoScript

PLAIN = DemoScript()


def tools(*names: str) -> list[dict]:
    return [{"type": "function", "function": {"name": name}} for name in names]


def ask(prompt: object, *names: str, **fields: object) -> dict:
    return {"messages": [{"role": "user", "content": prompt}], "tools": tools(*names), **fields}


def calls_of(request: dict, script: DemoScript = PLAIN) -> list[DemoCall]:
    return list(reply_to(request, script).calls)


def text_of(request: dict, script: DemoScript = PLAIN) -> str:
    return "".join(reply_to(request, script).tokens)


def with_results(*results: tuple[str, str]) -> dict:
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": n, "arguments": "{}"}}
        for i, (n, _) in enumerate(results)
    ]
    messages = [{"role": "user", "content": "weather in Paris?"}, {"role": "assistant", "tool_calls": calls}]
    messages += [
        {"role": "tool", "tool_call_id": f"c{i}", "content": content} for i, (_, content) in enumerate(results)
    ]
    return {"messages": messages}


def test_every_answer_names_the_demo():
    for request in (ask("Hi"), ask("weather in Paris", "get_weather"), with_results(("f", "x"))):
        assert "demo model" in text_of(request)


def test_each_place_gets_one_weather_call():
    request = ask("What is the weather in Paris and in Tokyo?", "get_weather", "other")
    reply = reply_to(request, PLAIN)

    assert [json.loads(call.arguments) for call in reply.calls] == [{"city": "Paris"}, {"city": "Tokyo"}]
    assert "".join(reply.tokens).endswith("get_weather.")
    assert reply.finish_reason == "tool_calls"
    assert all(len(list(call.pieces())) > 1 for call in reply.calls)


def test_named_tools_get_the_objects_after_them():
    request = ask(
        'call slow_tool {"seconds": 3} and slow and slow_tool {"seconds": 5}', "slow", "slow_tool", "get_weather"
    )

    assert calls_of(request) == [
        DemoCall("slow_tool", '{"seconds": 3}'),
        DemoCall("slow", "{}"),
        DemoCall("slow_tool", '{"seconds": 5}'),
    ]


def test_object_belongs_to_the_tool_before_it():
    assert calls_of(ask('f then g {"x": {"y": 1}} {"z": 2}, f {oops', "f", "g")) == [
        DemoCall("f", "{}"),
        DemoCall("g", '{"x": {"y": 1}}'),
        DemoCall("f", "{}"),
    ]


@pytest.mark.parametrize(
    ("prompt", "calls"),
    [
        ("Book a table for 4 at Luigi's", [("book_table", {"restaurant": "Luigi's", "guests": 4})]),
        ("please book us a table for two", [("book_table", {"restaurant": "the corner", "guests": 2})]),
        ("Book a table at Roma, but ask me first", ["book_table", "ask_user"]),
        ("Ask me what I like", ["ask_user"]),
        ("Weather in Oslo? Do not task me.", [("get_weather", {"city": "Oslo"})]),
        ("a table in a book", []),
    ],
)
def test_phrases_call_the_tools_that_involve_a_person(prompt, calls):
    made = calls_of(ask(prompt, "get_weather", "book_table", "ask_user"))

    assert [call.name for call in made] == [call if isinstance(call, str) else call[0] for call in calls]
    for call, wanted in zip(made, calls, strict=True):
        assert isinstance(wanted, str) or json.loads(call.arguments) == wanted[1]
    assert {call.name for call in calls_of(ask(prompt, "get_weather"))} <= {"get_weather"}, "only what is offered"


@pytest.mark.parametrize("prompt", ["my_f", "f-g", "nothing", [{"type": "text", "text": "nothing"}], None])
def test_prompt_without_names_calls_nothing(prompt):
    assert calls_of(ask(prompt, "f", "g")) == []


def test_tool_choice_is_obeyed():
    one = {"type": "function", "function": {"name": "get_weather"}}

    assert calls_of(ask("weather in Oslo", "get_weather", tool_choice="none")) == []
    assert len(calls_of(ask("Hi", "f", "get_weather", tool_choice="required"))) == 1
    assert calls_of(ask("Hi", "f", "get_weather", tool_choice=one))[0].name == "get_weather"
    assert len(calls_of(ask("in Oslo, Lima", "get_weather", parallel_tool_calls=False))) == 1


def test_script_sets_the_number_of_calls():
    calls = calls_of(ask("Hi", "get_weather"), DemoScript(calls=12))

    assert len(calls) == 12
    assert calls_of(ask("weather in Oslo", "get_weather"), DemoScript(calls=0)) == []


def test_results_are_quoted():
    paris = {"place": "Paris, France", "temperature_c": 14.2, "conditions": "light rain", "wind_kmh": 12.0}
    text = text_of(with_results(("get_weather", json.dumps(paris)), ("f", "forty-two"), ("g", "x" * 500)))

    assert "In Paris, France it is 14.2 °C with light rain, and the wind blows at 12 km/h." in text
    assert 'The tool f said: "forty-two"' in text
    assert "x" * 200 + " …" in text
    assert calls_of(with_results(("f", "x"))) == []


def test_answer_length_can_be_set():
    assert 40 <= len(text_of(ask("Hi")).split()) <= 80
    for length in (0, 5, 500):
        assert len(text_of(ask("Hi"), DemoScript(tokens=length)).split()) == length
    cut = reply_to(ask("Hi", max_tokens=3), PLAIN)
    assert (len(list(cut.tokens)), cut.finish_reason) == (3, "length")


def test_endless_answer_continues():
    assert len(list(islice(reply_to(ask("Hi"), DemoScript(endless=True)).tokens, 1000))) == 1000


def test_same_request_gets_the_same_answer():
    assert text_of(ask("Hi")) == text_of(ask("Hi"))


def test_stage_is_derived_from_tools_and_results():
    assert stage_of(ask("Hi", "f")) == "extraction"
    assert stage_of(ask("Hi")) == "synthesis"
    assert stage_of({**with_results(("f", "x")), "tools": tools("f")}) == "synthesis"
