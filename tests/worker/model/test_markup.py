import pytest

from worker.model.calls import Call
from worker.model.markup import split_calls, split_thoughts

PARIS = Call("", "get_weather", '{"city":"Paris"}')
TOKYO = Call("", "get_weather", '{"city":"Tokyo"}')
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
LLAMA = '{"name": "get_weather", "parameters": {"city": "%s"}}'
MISTRAL = '{"name": "get_weather", "arguments": {"city": "%s"}}'
GLM = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>%s</arg_value>\n</tool_call>"
KIMI = '<|tool_call_begin|>functions.get_weather:%d<|tool_call_argument_begin|>{"city": "%s"}<|tool_call_end|>'
CODER = "<function=get_weather>\n<parameter=city>\n%s\n</parameter>\n</function>"


@pytest.mark.parametrize(
    "text",
    [
        f"{HERMES % 'Paris'}\n{HERMES % 'Tokyo'}",
        f"{HERMES % 'Paris'}{HERMES % 'Tokyo'}".replace("</tool_call>", ""),
        f"<tool_call>{MISTRAL % 'Paris'}\n{MISTRAL % 'Tokyo'}</tool_call>",
        f"<tool_call>[{MISTRAL % 'Paris'}, {MISTRAL % 'Tokyo'}]</tool_call>",
        f"<tool_call>\n{CODER % 'Paris'}\n</tool_call>\n<tool_call>\n{CODER % 'Tokyo'}\n</tool_call>",
        f"{CODER % 'Paris'}\n{CODER % 'Tokyo'}",
        '<function=get_weather>{"city": "Paris"}</function><function=get_weather>{"city": "Tokyo"}</function>',
        f"{GLM % 'Paris'}\n{GLM % 'Tokyo'}",
        f"{GLM % 'Paris'}{GLM % 'Tokyo'}".replace("\n", ""),
        f"<|tool_calls_section_begin|>{KIMI % (0, 'Paris')}{KIMI % (1, 'Tokyo')}<|tool_calls_section_end|>",
        f"{KIMI % (0, 'Paris')}\n{KIMI % (1, 'Tokyo')}",
        f"<|python_tag|>{LLAMA % 'Paris'}; {LLAMA % 'Tokyo'}<|eom_id|>",
        f"<|python_tag|>{LLAMA % 'Paris'}\n{LLAMA % 'Tokyo'}",
        f"<|python_tag|>{LLAMA % 'Paris'}<|python_tag|>{LLAMA % 'Tokyo'}",
        '<|python_tag|>get_weather.call(city="Paris"); get_weather.call(city="Tokyo")',
        f"[TOOL_CALLS][{MISTRAL % 'Paris'}, {MISTRAL % 'Tokyo'}]",
        f"[TOOL_CALLS] {MISTRAL % 'Paris'} {MISTRAL % 'Tokyo'}",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_weather[ARGS]{"city": "Tokyo"}',
        '[TOOL_CALLS]get_weather{"city": "Paris"}get_weather{"city": "Tokyo"}',
    ],
)
def test_calls_are_found(text):
    assert split_calls(text) == ("", [PARIS, TOKYO])


def test_many_calls_without_an_end_cost_no_more_than_their_length():
    text = "<tool_call>f<arg_key>k</arg_key><arg_value>v" * 20_000

    assert split_calls(text) == (text, [])


def test_ids_in_text_are_kept():
    listed = '[TOOL_CALLS][{"name": "f", "arguments": "{}", "id": "abc123def"}]'
    inline = "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}"

    assert split_calls(listed) == ("", [Call("abc123def", "f", "{}")])
    assert split_calls(inline) == ("", [Call("abc123def", "f", "{}")])


def test_text_around_calls_stays():
    text = f"Let me look.\n{HERMES % 'Paris'}\nand there\n{HERMES % 'Tokyo'}\nDone."
    rest, calls = split_calls(text)

    assert calls == [PARIS, TOKYO]
    assert rest.split() == ["Let", "me", "look.", "and", "there", "Done."]


@pytest.mark.parametrize("arguments", ["", ', "arguments": null', ', "arguments": {}', ', "parameters": {}'])
def test_no_arguments_are_an_empty_object(arguments):
    text = '<tool_call>{"name": "f"%s}</tool_call>' % arguments  # noqa: UP031 - braces

    assert split_calls(text) == ("", [Call("", "f", "{}")])


def test_parameters_that_are_json_keep_their_type():
    text = (
        "<function=f><parameter=n>3</parameter><parameter=tags>[1]</parameter><parameter=s>a < b</parameter></function>"
    )

    assert split_calls(text)[1] == [Call("", "f", '{"n":3,"tags":[1],"s":"a < b"}')]


def test_closing_tag_within_a_string_ends_nothing():
    text = '<tool_call>{"name": "f", "arguments": {"s": "</tool_call>"}}</tool_call>'

    assert split_calls(text) == ("", [Call("", "f", '{"s":"</tool_call>"}')])


@pytest.mark.parametrize(
    "text",
    [
        "I would write <tool_call> here.",
        '<tool_call>{"name": "f", "argum',
        '<tool_call>{"no": "name"}</tool_call>',
        "<tool_call>[]</tool_call>",
        "[TOOL_CALLS] is a token of Mistral's.",
        "[TOOL_CALLS][1, 2]",
        "<|python_tag|>print(1 + 1)",
        "<|python_tag|>f.call(**x)",
        "<|python_tag|>f.call(x=open('y'))",
        "<function=broken",
        "<function=f>{oops</function>",
        "plain",
        "",
    ],
)
def test_what_only_resembles_a_call_stays_text(text):
    assert split_calls(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("plain", ("plain", "")),
        ("<think>\nHm.\n</think>\n\nYes.", ("Yes.", "Hm.")),
        ("<think></think>Yes.", ("Yes.", "")),
        ("<think>Hm.</think><think>So.</think>Yes.", ("Yes.", "Hm.\nSo.")),
        ("<think>cut off", ("", "cut off")),
        ("Hm.\n</think>\n\nYes.", ("Yes.", "Hm.")),
        ("The tag </think> ends thoughts.", ("The tag </think> ends thoughts.", "")),
        ("Use <think>.\n</think>\nSo.", ("Use <think>.\n</think>\nSo.", "")),
    ],
)
def test_thoughts_are_split_off(text, split):
    assert split_thoughts(text) == split
