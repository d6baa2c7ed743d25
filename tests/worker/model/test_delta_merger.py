"""A whole answer from chunks: its text, reasoning, calls, finish reason and error, however servers send them."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagebus.worker.model.delta_merger import DeltaMerger
from tests.support.chat_deltas import PARIS, calls_delta, calls_of, delta, merge, part


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], "Hello"),
        ([{"text": "Hello"}], "Hello"),
        (["Hello"], "Hello"),
        ({"type": "text", "text": "Hello"}, "Hello"),
        (
            [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
                {"type": "text", "text": "Hello"},
            ],
            "Hello",
        ),
        ([{"type": "text", "text": {"text": "Hello"}}], "Hello"),
        ([{"type": "image_url", "image_url": "x"}, None, 1, {"type": ["odd"]}], ""),
        (None, ""),
        ("", ""),
        (7, ""),
    ],
)
def test_content_of_any_shape_is_merged(content, text):
    assert merge(delta(content=content)).text == text


def test_thinking_parts_are_reasoning():
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Yes"}]
    merged = merge(delta(content=thinking))

    assert (merged.text, merged.reasoning) == ("Yes", "Hm")


@pytest.mark.parametrize(
    "fields", [{"reasoning_content": "Hm"}, {"reasoning": "Hm"}, {"reasoning_content": "Hm", "reasoning": "Hm"}]
)
def test_reasoning_under_several_names_counts_once(fields):
    merged = merge(delta(content="", **fields), delta(content="Yes", reasoning_content=None))

    assert (merged.text, merged.reasoning) == ("Yes", "Hm")


def test_reasoning_details_are_used_without_a_reasoning_field():
    blocks = [{"type": "reasoning.text", "text": "Hm", "index": 0}, {"type": "reasoning.summary", "summary": "!"}]

    assert merge(delta(reasoning_details=blocks)).reasoning == "Hm!"
    assert merge(delta(reasoning_details=blocks, reasoning="Hm?")).reasoning == "Hm?"
    assert merge(delta(reasoning_details=blocks, reasoning="Hm?")).reasoning_details == blocks
    for odd in (None, "x", 7, {"text": "x"}, [None, "x", {"text": 7}, {}]):
        assert merge(delta(content="Hi", reasoning_details=odd)).reasoning == ""


def test_think_tag_at_the_start_is_reasoning():
    text = "<think>\nHm, well\n</think>\n\nYes, <think> is a tag."

    merged = merge(*(delta(content=letter) for letter in text))
    assert (merged.text, merged.reasoning) == ("Yes, <think> is a tag.", "Hm, well")


def test_refusal_is_collected():
    assert merge(delta(refusal="I can"), delta(refusal="not")).refusal == "I cannot"


def test_text_calls_need_offered_tools():
    chunks = [delta(content=f'Let me see. <tool_call>{{"name": "get_weather", "arguments": {PARIS}}}</tool_call>')]

    assert calls_of(*chunks) == [("get_weather", '{"city":"Paris"}')]
    assert merge(*chunks).text == "Let me see."
    assert merge(*chunks, tools=()).tool_calls == []
    assert "<tool_call>" in merge(*chunks, tools=()).text


def test_text_calls_beside_native_ones_stay_text():
    text = '[TOOL_CALLS][{"name": "get_time", "arguments": {}}]'
    merged = merge(delta(content=text), calls_delta(part("get_weather", PARIS, index=0, id="a")))

    assert [call.name for call in merged.tool_calls] == ["get_weather"]
    assert merged.text == text


HARMONY = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    f"<|constrain|>json<|message|>{PARIS}<|call|>"
)


WRITTEN = {
    "hermes": f'<tool_call>{{"name": "get_weather", "arguments": {PARIS}}}</tool_call>',
    "deepseek": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "minimax": '<minimax:tool_call><invoke name="get_weather"><parameter name="city">Paris</parameter></invoke></minimax:tool_call>',
    "bare": f'{{"name": "get_weather", "parameters": {PARIS}}}',
    "pythonic": '[get_weather(city="Paris")]',
    "harmony": HARMONY,
    "in thoughts that never end": f'<think>Hm. <tool_call>{{"name": "functions.get_weather", "arguments": {PARIS}}}</tool_call>',
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN.keys())
def test_text_call_split_anywhere_is_found(text):
    for cut in range(0, len(text), 3):
        merged = merge(delta(content=text[:cut]), delta(content=text[cut:]), delta("stop"))
        assert [(call.name, json.loads(call.arguments)) for call in merged.tool_calls] == [
            ("get_weather", {"city": "Paris"})
        ]
        assert merged.text == ""
    assert merge(delta(content=text), tools=()).tool_calls == []


def test_text_call_in_reasoning_counts_only_without_text():
    call = WRITTEN["hermes"]

    assert calls_of(delta(reasoning_content=call), delta("stop")) == [("get_weather", '{"city":"Paris"}')]
    assert calls_of(delta(reasoning_content=call), delta(content="It is warm.")) == []
    assert calls_of(delta(reasoning_content=f"`{call}`")) == []
    assert calls_of(delta(reasoning_content=call.replace("get_weather", "get_rich"))) == []


def test_text_call_in_code_stays_text():
    text = f"Models call so:\n```\n{WRITTEN['hermes']}\n```\n"

    assert merge(delta(content=text)).text == text
    assert calls_of(delta(content=text)) == []


def test_namespace_of_a_tool_name_is_removed():
    assert calls_of(calls_delta(part("functions.get_weather", PARIS, index=0))) == [("get_weather", PARIS)]
    assert calls_of(calls_delta(part("functions.other", "{}", index=0))) == [("functions.other", "{}")]


@pytest.mark.parametrize(
    "name",
    [
        "get_weather<|channel|>commentary",
        "functions.get_weather<|constrain|>json",
        "assistant<|channel|>commentary to=functions.get_weather",
        "get_weathercity</arg_key>",
    ],
)
def test_control_tokens_behind_a_tool_name_are_cut_off(name: str):
    assert calls_of(calls_delta(part(name, PARIS, index=0))) == [("get_weather", PARIS)]


def test_unknown_name_with_control_tokens_stays():
    for name in ("other<|channel|>commentary", "get_weathertown</arg_key>", "<|channel|>"):
        assert calls_of(calls_delta(part(name, PARIS, index=0))) == [(name, PARIS)]


def test_nearly_json_arguments_are_cleaned_and_typed_by_the_schema():
    merger = DeltaMerger(("f",), schemas={"f": {"properties": {"id": {"type": "integer"}}}})
    merger.add(calls_delta(part("f", '{"id": 5.0, "text": "a\nb"}</tool_call>', index=0)))

    assert [call.arguments for call in merger.result().tool_calls] == ['{"id":5,"text":"a\\nb"}']


def test_values_in_text_calls_have_the_types_of_the_schema():
    properties = {"n": {"type": "array"}, "precise": {"type": "boolean"}, "text": {"type": "string"}}
    values = {"n": "[1, 2,]", "precise": "True", "text": "5.0"}
    written = "".join(f"<parameter={name}>\n{value}\n</parameter>" for name, value in values.items())
    merger = DeltaMerger(("f",), schemas={"f": {"properties": properties}})
    merger.add(delta("stop", content=f"<tool_call><function=f>{written}</function></tool_call>"))

    assert [call.arguments for call in merger.result().tool_calls] == ['{"n":[1,2],"precise":true,"text":"5.0"}']


def growing(text: str, step: int = 5) -> list[str]:
    return [text[:end] for end in range(step, len(text) + step, step)]


def test_cumulative_text_counts_once():
    text = "It is 18 °C in Paris, and clear."
    chunks = [delta(content=piece, reasoning_content=piece.upper()) for piece in growing(text)]

    for ends in ([], [delta("stop", content="")], [delta("stop", content=text)]):
        merged = merge(delta(role="assistant", content=""), *chunks, *ends)
        assert (merged.text, merged.reasoning) == (text, text.upper())


@pytest.mark.parametrize(
    "pieces",
    [
        ["ha", "haha", "hahaha", "hahahaha", "hahahahaha"],
        [" ", "  ", "   ", "    ", "     "],
        ["I", "I am", "I am a"],
        ["ab", "abcd", "abcdef", "abcdefgh", "x"],
        ["Paris", "Paris", "Paris", "Paris", "Paris, France"],
        ["--", "----", "------", "--------|", "--------|--"],
    ],
)
def test_repetitive_text_is_not_cumulative(pieces):
    assert merge(*(delta(content=piece) for piece in pieces)).text == "".join(pieces)


def test_first_model_name_is_kept():
    assert merge({"model": "", "choices": []}, {"model": "gpt", **delta(content="x")}).model == "gpt"


@pytest.mark.parametrize("not_yet", [None, "", "null"])
def test_last_valid_finish_reason_counts(not_yet):
    assert merge(delta(not_yet), delta("length"), delta(not_yet)).finish_reason == "length"
    assert merge(delta(not_yet)).finish_reason is None


def test_role_only_is_an_empty_answer():
    merged = merge(delta(role="assistant"), delta("stop"))

    assert (merged.text, merged.tool_calls, merged.finish_reason, merged.error) == ("", [], "stop", None)


def test_error_ends_the_answer_and_keeps_what_came_before():
    merged = merge(delta(content="Hel"), {"error": {"message": "overloaded", "code": 529}})

    assert merged.text == "Hel"
    assert merged.error is not None
    assert merged.error.message == "overloaded"
    assert merge(delta("error")).error is not None


def test_error_after_the_finish_reason_is_ignored():
    assert merge(delta("length", content="Hel"), {"error": {"message": "limit"}}).error is None


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ({"choices": [{"index": 0, "delta": {}, "error": {"code": 502, "message": "gone"}}]}, "gone"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": "gone"}}]}, "gone"),
        ({"choices": [], "error": "gone"}, "gone"),
        (
            {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
            "insufficient balance",
        ),
        ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "rate limit"),
        ({"code": 1302, "msg": "rate limit"}, "rate limit"),
        ({"error_msg": "busy", "error_code": 18}, "busy"),
        ({"object": "error", "message": "gone"}, "gone"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "gone"}}, "gone"),
    ],
)
def test_error_in_any_place_is_found(chunk, message):
    error = merge(delta(content="Hel"), chunk).error

    assert error is not None
    assert error.message == message


@pytest.mark.parametrize(
    "chunk",
    [
        {"code": 0, "message": "Success", "sid": "cha0", "usage": {"total_tokens": 3}},
        {"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}, "usage": {"total_tokens": 3}},
        {"choices": [], "error": None, "usage": {"total_tokens": 3}},
        {"type": "ping", "usage": {"total_tokens": 3}},
    ],
)
def test_success_code_is_no_error(chunk):
    merged = merge(delta(content="Hi"), chunk)

    assert (merged.error, merged.usage) == (None, {"total_tokens": 3})


def test_final_message_does_not_repeat_the_text():
    whole = {"role": "assistant", "content": "Hello", "tool_calls": [part("get_weather", PARIS, id="a")]}
    merged = merge(
        delta(content="Hel"), delta(content="lo"), {"choices": [{"message": whole, "finish_reason": "stop"}]}
    )

    assert merged.text == "Hello"
    assert [call.name for call in merged.tool_calls] == ["get_weather"]
    assert (
        merge({"choices": [{"message": {"content": "Hel"}}]}, {"choices": [{"message": {"content": "lo"}}]}).text
        == "Hello"
    )


@pytest.mark.parametrize("whole", ["Hello", "Hello there", " Hello\n"])
def test_final_message_may_be_longer_or_shorter_than_the_deltas(whole):
    merged = merge(delta(content="\nHel"), delta(content="lo"), {"choices": [{"message": {"content": whole}}]})

    assert merged.text.strip() == whole.strip()


def test_text_call_in_code_counts_with_a_call_finish_reason():
    text = f"```json\n{WRITTEN['hermes']}\n```"

    assert calls_of(delta(content=text), delta("stop")) == []
    assert calls_of(delta(content=text), delta("tool_calls")) == [("get_weather", '{"city":"Paris"}')]


@pytest.mark.parametrize(
    "reason", ["function_call", "eos", "eos_token", "stop_sequence", "content_filter", "sensitive"]
)
def test_finish_reason_of_any_name_is_kept(reason):
    assert merge(delta(content="a"), delta(reason)).finish_reason == reason


def test_other_fields_leave_the_text_alone():
    """Perplexity's sources, logprobs, annotations, a note by Hunyuan, audio, Cloudflare's padding."""
    merged = merge(
        {**delta(content="Hi", role="assistant", annotations=[{"type": "url_citation"}], audio={"id": "x"}, p="abc"),
         "citations": ["https://a.example"], "search_results": [{"title": "A"}], "note": "made by AI"},
        {"choices": [{"delta": {"content": " there"}, "logprobs": {"content": [{"token": "x", "logprob": None}]}}]},
        {"choices": [{"delta": None, "finish_reason": "stop"}]},
        {"choices": None, "usage": None},
    )  # fmt: skip

    assert (merged.text, merged.tool_calls, merged.finish_reason, merged.error) == ("Hi there", [], "stop", None)


def test_other_choices_are_ignored():
    two = {"choices": [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]}

    assert merge(two, {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}) == merge(delta(content="yes"))


FIELDS = st.sampled_from([
    "choices", "index", "delta", "message", "content", "type", "text", "tool_calls", "function", "name", "id",
    "arguments", "function_call", "usage", "error", "code", "finish_reason", "reasoning", "model", "total_tokens",
    "base_resp", "status_code", "reasoning_details", "data", "x_groq", "msg", "parameters", "summary",
])  # fmt: skip


JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 2.5, 1e300, "", "x", "text", "thinking", "{}", "<think>", "[TOOL_CALLS]f{}"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(JSON, max_size=4))
def test_merger_never_raises(values):
    chunks = [value for value in values if isinstance(value, dict)]
    chunks += [{"choices": value, "usage": value, "error": value} for value in values]
    chunks += [{"choices": [{"delta": value}, {"delta": {"content": value}, "usage": value}]} for value in values]
    chunks += [
        {"choices": [{"delta": {"tool_calls": [value, {"function": value}], "content": [value]}}]} for value in values
    ]

    merged = merge(*chunks)
    assert len({call.id for call in merged.tool_calls}) == len(merged.tool_calls)
    assert merged.tokens is None or merged.tokens.total_tokens >= 0


def test_hostile_answers_take_bounded_time_and_memory() -> None:
    """Nothing beside the answer is kept, and no piece is looked at again for each further one."""
    detail = [{"type": "reasoning.text", "index": n, "text": "a"} for n in range(8000)]
    answers = [
        [{"choices": [{"index": 1, "delta": {}, "logprobs": "x" * 200_000 + str(n)}], "pad": "x" * 200_000}
         for n in range(20)],
        [delta(content="a"), *[delta(content="bc")] * 12_000, *[{"choices": [{"message": {"content": "a"}}]}] * 6000],
        [*[delta(content=" ")] * 12_000, *[{"choices": [{"message": {"content": "a"}}]}] * 6000],
        [delta(reasoning_details=detail), delta(reasoning_details=detail)],
    ]  # fmt: skip
    for chunks in answers:
        began = time.process_time()
        merger = DeltaMerger()
        for chunk in chunks:
            merger.add(chunk)
        assert len(repr(vars(merger))) < 2_000_000
        merger.result()
        assert time.process_time() - began < 0.5


def test_usage_objects_with_ever_new_names_do_not_grow() -> None:
    merged = merge(*({"choices": [], "usage": {"total_tokens": 3, f"name_{n}": 1}} for n in range(200)))

    assert len(merged.usage) < 100
    assert merged.tokens.total_tokens == 3


def test_place_of_a_call_may_have_any_number_of_digits() -> None:
    assert calls_of(calls_delta(part(index="9" * 5000, name="f", arguments="{}")))
