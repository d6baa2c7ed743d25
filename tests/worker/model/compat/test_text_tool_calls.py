"""Calls written as text, and text that only mentions calls."""

import time

import pytest

from stagebus.shared.model_text.reasoning_text import split_reasoning
from stagebus.worker.model.compat.call_fragments import NO_EXTRA, ParsedCall
from stagebus.worker.model.compat.text_tool_calls import has_unread_call, match_tool_name, split_text_calls

PARIS = ParsedCall("", "get_weather", '{"city":"Paris"}')
TOKYO = ParsedCall("", "get_weather", '{"city":"Tokyo"}')
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
LLAMA = '{"name": "get_weather", "parameters": {"city": "%s"}}'
MISTRAL = '{"name": "get_weather", "arguments": {"city": "%s"}}'
GLM = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>%s</arg_value>\n</tool_call>"
KIMI = '<|tool_call_begin|>functions.get_weather:%d<|tool_call_argument_begin|>{"city": "%s"}<|tool_call_end|>'
CODER = "<function=get_weather>\n<parameter=city>\n%s\n</parameter>\n</function>"

DEEPSEEK = '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "%s"}<｜tool▁call▁end｜>'
DEEPSEEK_R1 = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "%s"}\n```<｜tool▁call▁end｜>'
INVOKE = '<invoke name="get_weather">\n<parameter name="city">%s</parameter>\n</invoke>'
CLAUDE = INVOKE.replace("<", "<antml:").replace("<antml:/", "</antml:")
DSML = INVOKE.replace("<", "<｜DSML｜").replace("<｜DSML｜/", "</｜DSML｜").replace('"city"', '"city" string="true"')
COHERE = '{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "%s"}}'
PYTHON = '[get_weather(city="Paris"), get_weather(city="Tokyo")]'
NAMES = ("get_weather", "get_time")


def split(text: str, *args, **options) -> tuple[str, list[ParsedCall]]:
    """Splits a text, and leaves out the values whose types the schema tells."""
    rest, calls = split_text_calls(text, *args, **options)
    return rest, [call._replace(texts=NO_EXTRA) for call in calls]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<｜DSML｜tool_calls>" + DSML % "Paris" + "</｜DSML｜tool_calls>", '{"city":"Paris"}'),
        (("<｜DSML｜tool_calls>" + DSML % "Paris" + "</｜DSML｜tool_calls>").replace("｜", "|"), '{"city":"Paris"}'),
        (DSML % "Paris", '{"city":"Paris"}'),
        ("<tool_call>get_weather</tool_call>", "{}"),
        ("<tool_call>get_weathercity</arg_key><arg_value>Paris</arg_value></tool_call>", '{"city":"Paris"}'),
        (GLM.removeprefix("<tool_call>") % "Paris", '{"city":"Paris"}'),
        (CODER % "<function=f>x</function> and </parameter-like>\n</parameter> <b>",
         '{"city":"<function=f>x</function> and </parameter-like>\\n</parameter> <b>"}'),
        (CODER.replace("</function>", "</tool_call>") % "Paris", '{"city":"Paris"}'),
        ('<|tool_call>call:get_weather{city:<|"|>Pa"{ris<|"|>,a:[1,true,{b:null}],c:word}<tool_call|>',
         '{"city":"Pa\\"{ris","a":[1,true,{"b":null}],"c":"word"}'),
        ("<|tool_call>call:get_weather{}<tool_call|>", "{}"),
    ],
)  # fmt: skip
def test_variant_of_a_format_is_read(text: str, arguments: str) -> None:
    assert split(text, NAMES, looks_into_code=False) == ("", [ParsedCall("", "get_weather", arguments)])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>get_weather(city=</tool_call>",
        "Let me look. <｜DSML｜invoke name='get_weather'>Paris</｜DSML｜tool_calls>",
        "<|tool_call>call:get_weather{city:<tool_call|>",
    ],
)
def test_unreadable_call_is_recognised(text: str) -> None:
    assert split(text, NAMES) == (text, [])
    assert has_unread_call(text, NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "Calls stand between <tool_call> tags, as get_weather does.",
        "`<tool_call>get_weather(</tool_call>` is broken.",
        "<tool_call>word</tool_call>",
        "plain",
    ],
)
def test_text_about_calls_is_no_unreadable_call(text: str) -> None:
    assert split(text, NAMES, looks_into_code=False) == (text, [])
    assert not has_unread_call(text, NAMES)


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
        f"<｜tool▁calls▁begin｜>{DEEPSEEK % 'Paris'}\n{DEEPSEEK % 'Tokyo'}<｜tool▁calls▁end｜>",
        f"<｜tool▁calls▁begin｜>{DEEPSEEK_R1 % 'Paris'}\n{DEEPSEEK_R1 % 'Tokyo'}<｜tool▁calls▁end｜>",
        f"{DEEPSEEK % 'Paris'}{DEEPSEEK % 'Tokyo'}",
        f"<｜DSML｜function_calls>\n{DSML % 'Paris'}\n{DSML % 'Tokyo'}\n</｜DSML｜function_calls>",
        f"<minimax:tool_call>\n{INVOKE % 'Paris'}\n{INVOKE % 'Tokyo'}\n</minimax:tool_call>",
        f"<minimax:tool_call>{INVOKE % 'Paris'}</minimax:tool_call>\n<minimax:tool_call>{INVOKE % 'Tokyo'}</minimax:tool_call>",
        f"<seed:tool_call>\n{CODER % 'Paris'}\n{CODER % 'Tokyo'}</seed:tool_call>",
        f"<|tool_call|>[{MISTRAL % 'Paris'}, {MISTRAL % 'Tokyo'}]",
        f"<TOOLCALL>[{MISTRAL % 'Paris'}, {MISTRAL % 'Tokyo'}]</TOOLCALL>",
        f"<|START_ACTION|>[\n{COHERE % 'Paris'},\n{COHERE % 'Tokyo'}\n]<|END_ACTION|>",
        f"<|action_start|><|plugin|>\n{LLAMA % 'Paris'}<|action_end|><|action_start|><|plugin|>{LLAMA % 'Tokyo'}<|action_end|>",
        f"<|tool_call_start|>{PYTHON}<|tool_call_end|>",
        f"<|python_start|>{PYTHON}<|python_end|>",
    ],
)
def test_text_calls_are_found(text):
    for names in (None, NAMES):
        assert split(text, names, looks_into_code=False) == ("", [PARIS, TOKYO])


@pytest.mark.parametrize(
    "text",
    [
        f"functools[{MISTRAL % 'Paris'}, {MISTRAL % 'Tokyo'}]",
        f"<tool_calls>\n{MISTRAL % 'Paris'}\n{MISTRAL % 'Tokyo'}\n</tool_calls>",
        f"<function_call>{MISTRAL % 'Paris'}<function_call> {MISTRAL % 'Tokyo'}",
        f"<function_calls>\n{INVOKE % 'Paris'}\n{INVOKE % 'Tokyo'}\n</function_calls>",
        f"<antml:function_calls>\n{CLAUDE % 'Paris'}\n{CLAUDE % 'Tokyo'}\n</antml:function_calls>",
        f"{CLAUDE % 'Paris'}\n{CLAUDE % 'Tokyo'}",
        f"Action: ```json\n[{COHERE % 'Paris'}, {COHERE % 'Tokyo'}]\n```",
        f"```tool_code\n{PYTHON}\n```",
        '```tool_code\nprint(default_api.get_weather(city="Paris"))\nget_weather(city="Tokyo")\n```',
        '>>>get_weather\n{"city": "Paris"}>>>get_weather\n{"city": "Tokyo"}',
        'get_weather\n{"city": "Paris"}\n>>>get_weather\n{"city": "Tokyo"}',
        f"{LLAMA % 'Paris'}; {LLAMA % 'Tokyo'}<|eom_id|>",
        f"\n[{MISTRAL % 'Paris'}, {MISTRAL % 'Tokyo'}]\n",
        f"{PYTHON}<|eot_id|>",
    ],
)
def test_ambiguous_marker_needs_an_offered_tool(text):
    rest, calls = split(text, NAMES, looks_into_code=False)

    assert (rest, [match_tool_name(call, NAMES) for call in calls]) == ("", [PARIS, TOKYO])
    assert split(text, ["get_time"], looks_into_code=False) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        f"So it is written:\n```xml\n{HERMES % 'Paris'}\n```\nNo more.",
        f"```\n{HERMES % 'Paris'}\n",
        f"~~~~\n```\n{INVOKE % 'Paris'}\n```\n~~~~",
        f"Write `{MISTRAL % 'Paris'}` between `<tool_call>` and `</tool_call>`.",
        f"Write ``<tool_call>{MISTRAL % 'Paris'}``.",
        f"As `[TOOL_CALLS][{MISTRAL % 'Paris'}]` says,\n> `functools[{MISTRAL % 'Paris'}]`",
        f"An example is {MISTRAL % 'Paris'}.",
        f"{MISTRAL % 'Paris'}\nis JSON.",
        f"In Python: {PYTHON}",
        '{"name": "get_weather", "description": "Weather", "parameters": {"city": "string"}}',
        '{"name": "get_weather", "parameters": {"type": "object", "properties": {}}}',
        '[{"name": "get_weather"}]',
        '{"name": "get_weather", "arguments": {"city": "Paris"}, "note": "an example"}',
        "[get_weather]",
        "[get_weather(city)]",
        "functools is a module; functools[0] is nothing.",
        ">>>get_weather()",
        "<invoke name=",
        '<invoke name="get_weather"> is how it begins.',
        "<function=get_weather>the function's name</function>",
        "<tool_call>f>",
        "```tool_code\nx = 1\n```\nand `code`.",
    ],
)
def test_text_about_calls_stays_text(text):
    assert split(text, NAMES, looks_into_code=False) == (text, [])


def test_code_before_or_inside_a_call_does_not_hide_it():
    text = f"```py\nx\n```\nThe ` is odd, `so` is this.\n{HERMES % 'Paris'}\n`<tool_call>`\n{HERMES % 'Tokyo'}"
    rest, calls = split(text, NAMES, looks_into_code=False)
    fenced = '<tool_call>{"name": "f", "arguments": {"code": "```py\\nx\\n```"}}</tool_call>'

    assert calls == [PARIS, TOKYO]
    assert "`<tool_call>`" in rest
    assert split(fenced, ["f"], looks_into_code=False)[0] == ""


def test_parameters_of_every_format_keep_their_type():
    invoke = '<invoke name="f"><parameter name="n">3</parameter><parameter name="s">a\nb</parameter></invoke>'
    dsml = '<｜DSML｜invoke name="f"><｜DSML｜parameter name="n" string="false">3</｜DSML｜parameter><｜DSML｜parameter name="s" string="true">4</｜DSML｜parameter></｜DSML｜invoke>'

    assert split(f"<minimax:tool_call>{invoke}</minimax:tool_call>")[1] == [ParsedCall("", "f", '{"n":3,"s":"a\\nb"}')]
    assert split(f"<｜DSML｜function_calls>{dsml}")[1] == [ParsedCall("", "f", '{"n":3,"s":"4"}')]
    assert split("<|python_tag|>f.call(n=-3, s='a)', t=[True, null], d={'x': 1.5})")[1] == [
        ParsedCall("", "f", '{"n":-3,"s":"a)","t":[true,null],"d":{"x":1.5}}')
    ]


def test_invalid_python_escape_is_a_backslash():
    assert split(r'<|python_tag|>f.call(pattern="\d+")')[1] == [ParsedCall("", "f", r'{"pattern":"\\d+"}')]


@pytest.mark.parametrize("name", ["functions.get_weather", "default_api.get_weather", " get_weather"])
def test_tool_name_in_a_namespace_is_matched(name):
    assert match_tool_name(ParsedCall("", name, "{}"), NAMES).name == "get_weather"
    assert match_tool_name(ParsedCall("", name, "{}"), ["get_time"]).name == name
    assert match_tool_name(ParsedCall("", name, "{}"), [name]).name == name


@pytest.mark.parametrize(
    "piece",
    [
        "<tool_call>f<arg_key>k</arg_key><arg_value>v",
        "<function=f>{oops",
        "<function=f><parameter=a>",
        '<minimax:tool_call><invoke name="f"><parameter name="a">',
        '<tool_call>{"a": [',
        '<|python_tag|>f(a="',
        "[TOOL_CALLS]f{",
        "<｜tool▁calls▁begin｜>f{",
        "``` <tool_call>\n",
        "` `` ``` <tool_call>",
        "[[",
        "f(",
        "<|channel|>x<|message|>",
        "<think>",
        "<think>\n\n`",
        "\n</think> `",
    ],
)
def test_text_calls_take_linear_time(piece):
    text = piece * (400_000 // len(piece))
    started = time.perf_counter()

    rest, thoughts = split_reasoning(text)
    assert split(rest, NAMES, looks_into_code=False)[1] == []
    assert thoughts in text
    assert time.perf_counter() - started < 3


def test_ids_of_text_calls_are_kept():
    listed = '[TOOL_CALLS][{"name": "f", "arguments": "{}", "id": "abc123def"}]'
    inline = "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}"

    assert split(listed) == ("", [ParsedCall("abc123def", "f", "{}")])
    assert split(inline) == ("", [ParsedCall("abc123def", "f", "{}")])


def test_text_around_calls_is_kept():
    text = f"Let me look.\n{HERMES % 'Paris'}\nand there\n{HERMES % 'Tokyo'}\nDone."
    rest, calls = split(text)

    assert calls == [PARIS, TOKYO]
    assert rest.split() == ["Let", "me", "look.", "and", "there", "Done."]


@pytest.mark.parametrize("arguments", ["", ', "arguments": null', ', "arguments": {}', ', "parameters": {}'])
def test_no_arguments_are_an_empty_object(arguments):
    text = '<tool_call>{"name": "f"%s}</tool_call>' % arguments  # noqa: UP031 - braces

    assert split(text) == ("", [ParsedCall("", "f", "{}")])


def test_parameters_that_are_json_keep_their_type():
    text = (
        "<function=f><parameter=n>3</parameter><parameter=tags>[1]</parameter><parameter=s>a < b</parameter></function>"
    )

    assert split(text)[1] == [ParsedCall("", "f", '{"n":3,"tags":[1],"s":"a < b"}')]


def test_closing_tag_in_a_string_is_ignored():
    text = '<tool_call>{"name": "f", "arguments": {"s": "</tool_call>"}}</tool_call>'

    assert split(text) == ("", [ParsedCall("", "f", '{"s":"</tool_call>"}')])


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
def test_text_that_resembles_a_call_stays_text(text):
    assert split(text) == (text, [])
