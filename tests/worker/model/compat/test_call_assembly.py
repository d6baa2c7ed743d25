"""Tool calls in fragments: one case for each way in which servers send them."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagebus.worker.model.chat_chunks import ChunkDecoder
from tests.support.chat_deltas import PARIS, calls_delta, calls_of, delta, ids_of, merge, part

TOKYO = '{"city": "Tokyo"}'


BOTH = [("get_weather", PARIS), ("get_weather", TOKYO)]


# Each of these means a call for Paris, then one for Tokyo.
TWO_CALLS = {
    "by index, in fragments": [
        calls_delta(part("get_weather", "", index=0, id="a", type="function")),
        calls_delta(part(arguments=PARIS[:5], index=0)),
        calls_delta(part(arguments=PARIS[5:], index=0)),
        calls_delta(part("get_weather", "", index=1, id="b", type="function")),
        calls_delta(part(arguments=TOKYO[:1], index=1)),
        calls_delta(part(arguments=TOKYO[1:], index=1)),
    ],
    "interleaved": [
        calls_delta(part("get_weather", "", index=0, id="a")),
        calls_delta(part("get_weather", "", index=1, id="b")),
        calls_delta(part(arguments=PARIS[:5], index=0), part(arguments=TOKYO[:3], index=1)),
        calls_delta(part(arguments=TOKYO[3:], index=1), part(arguments=PARIS[5:], index=0)),
    ],
    "index out of order": [
        calls_delta(part("get_weather", TOKYO, index=1, id="b")),
        calls_delta(part("get_weather", PARIS, index=0, id="a")),
    ],
    "index as a string": [
        calls_delta(part("get_weather", PARIS, index="0", id="a")),
        calls_delta(part("get_weather", TOKYO, index="1", id="b")),
    ],
    "index as a number with a point": [
        calls_delta(part("get_weather", PARIS, index=0.0, id="a")),
        calls_delta(part("get_weather", TOKYO, index=1.0, id="b")),
    ],
    "index -1 for all": [
        calls_delta(part("get_weather", "", index=-1, id="a")),
        calls_delta(part(arguments=PARIS, index=-1)),
        calls_delta(part("get_weather", "", index=-1, id="b")),
        calls_delta(part(arguments=TOKYO, index=-1)),
    ],
    "id as a number": [
        calls_delta(part("get_weather", PARIS, index=0, id=0)),
        calls_delta(part("get_weather", TOKYO, index=0, id=1)),
    ],
    "one index, id by the call's number": [
        calls_delta(part("get_weather", "", index=0, id="0")),
        calls_delta(part(None, PARIS, index=0, id="0")),
        calls_delta(part("get_weather", "", index=0, id="1")),
        calls_delta(part(None, TOKYO, index=0, id="1")),
    ],
    "an object in the place of the list": [
        delta(tool_calls=part("get_weather", "", index=0, id="")),
        delta(tool_calls=part("", PARIS[:5], index=0, id="")),
        delta(tool_calls=part("", PARIS[5:], index=0, id="")),
        delta(tool_calls=part("get_weather", "", index=1, id="")),
        delta(tool_calls=part("", TOKYO, index=1, id="")),
    ],
    "arguments as parameters": [
        calls_delta({"id": "a", "function": {"name": "get_weather", "parameters": PARIS}}),
        calls_delta({"id": "b", "function": {"name": "get_weather", "parameters": TOKYO}}),
    ],
    "arguments as input": [
        calls_delta({"id": "a", "name": "get_weather", "input": PARIS}),
        calls_delta({"id": "b", "name": "get_weather", "input": TOKYO}),
    ],
    "nulls for all that is not new": [
        calls_delta(part("get_weather", "", index=0, id="a", type="function")),
        calls_delta(part(None, PARIS, index=0, id=None, type=None)),
        calls_delta(part("get_weather", "", index=1, id="b", type="function")),
        calls_delta(part(None, TOKYO, index=1, id=None, type=None)),
        delta("tool_calls", content=None, tool_calls=None, function_call=None),
    ],
    "index counted from one": [
        calls_delta(part("get_weather", PARIS, index=1, id="a")),
        calls_delta(part("get_weather", TOKYO, index=2, id="b")),
    ],
    "no index, whole": [
        calls_delta(part("get_weather", PARIS, id="a")),
        calls_delta(part("get_weather", TOKYO, id="b")),
    ],
    "no index, in fragments": [
        calls_delta(part("get_weather", "", id="a")),
        calls_delta(part(arguments=PARIS[:5])),
        calls_delta(part(arguments=PARIS[5:])),
        calls_delta(part("get_weather", "", id="b")),
        calls_delta(part(arguments=TOKYO)),
    ],
    "no index, fragments told by their id": [
        calls_delta(part("get_weather", "", id="a"), part("get_weather", "", id="b")),
        calls_delta(part(arguments=PARIS[:5], id="a")),
        calls_delta(part(arguments=TOKYO[:5], id="b")),
        calls_delta(part(arguments=PARIS[5:], id="a")),
        calls_delta(part(arguments=TOKYO[5:], id="b")),
    ],
    "neither index nor id": [
        calls_delta(part("get_weather", PARIS)),
        calls_delta(part("get_weather", TOKYO)),
    ],
    "neither index nor id, in fragments": [
        calls_delta(part("get_weather", PARIS[:4])),
        calls_delta(part(arguments=PARIS[4:])),
        calls_delta(part("get_weather", TOKYO[:4])),
        calls_delta(part(arguments=TOKYO[4:])),
    ],
    "all index 0": [
        calls_delta(part("get_weather", PARIS, index=0, id="a")),
        calls_delta(part("get_weather", TOKYO, index=0, id="b")),
    ],
    "all index 0, in fragments": [
        calls_delta(part("get_weather", "", index=0, id="a")),
        calls_delta(part(arguments=PARIS, index=0)),
        calls_delta(part("get_weather", "", index=0, id="b")),
        calls_delta(part(arguments=TOKYO[:9], index=0)),
        calls_delta(part(arguments=TOKYO[9:], index=0)),
    ],
    "all index 0, one id for all": [
        calls_delta(part("get_weather", PARIS, index=0, id="a")),
        calls_delta(part("get_weather", TOKYO, index=0, id="a")),
    ],
    "all index 0, no id": [
        calls_delta(part("get_weather", PARIS, index=0)),
        calls_delta(part("get_weather", TOKYO, index=0)),
    ],
    "all index 0, several in one delta": [
        calls_delta(part("get_weather", PARIS, index=0, id="a"), part("get_weather", TOKYO, index=0, id="b")),
    ],
    "several in one delta": [
        calls_delta(part("get_weather", PARIS, index=0, id="a"), part("get_weather", TOKYO, index=1, id="b")),
    ],
    "id repeated in every fragment": [
        calls_delta(part("get_weather", "", index=0, id="a")),
        calls_delta(part("", PARIS[:7], index=0, id="a")),
        calls_delta(part(None, PARIS[7:], index=0, id="a")),
        calls_delta(part("get_weather", "", index=1, id="b")),
        calls_delta(part(None, TOKYO, index=1, id="b")),
    ],
    "id empty in later fragments": [
        calls_delta(part("get_weather", "", index=0, id="a")),
        calls_delta(part("", PARIS, index=0, id="")),
        calls_delta(part("get_weather", "", index=1, id="b")),
        calls_delta(part("", TOKYO, index=1, id="")),
    ],
    "id new for each fragment": [
        calls_delta(part("get_weather", "", index=0, id="a1")),
        calls_delta(part(arguments=PARIS[:7], index=0, id="a2")),
        calls_delta(part(arguments=PARIS[7:], index=0, id="a3")),
        calls_delta(part("get_weather", "", index=1, id="b1")),
        calls_delta(part(arguments=TOKYO, index=1, id="b2")),
    ],
    "id new and name repeated in each fragment": [
        calls_delta(part("get_weather", "", index=0, id="a1")),
        calls_delta(part("get_weather", PARIS[:7], index=0, id="a2")),
        calls_delta(part("get_weather", PARIS[7:], index=0, id="a3")),
        calls_delta(part("get_weather", "", index=1, id="b1")),
        calls_delta(part("get_weather", TOKYO, index=1, id="b2")),
    ],
    "id only in the last fragment": [
        calls_delta(part("get_weather", PARIS[:7], index=0)),
        calls_delta(part(arguments=PARIS[7:], index=0, id="a")),
        calls_delta(part("get_weather", TOKYO[:7], index=1)),
        calls_delta(part(arguments=TOKYO[7:], index=1, id="b")),
    ],
    "index rises with each fragment of an id": [
        calls_delta(part("get_weather", PARIS[:7], index=0, id="a")),
        calls_delta(part(arguments=PARIS[7:], index=1, id="a")),
        calls_delta(part("get_weather", TOKYO[:7], index=2, id="b")),
        calls_delta(part(arguments=TOKYO[7:], index=3, id="b")),
    ],
    "index only in later fragments": [
        calls_delta(part("get_weather", "", id="a")),
        calls_delta(part(arguments=PARIS, index=0)),
        calls_delta(part("get_weather", "", id="b")),
        calls_delta(part(arguments=TOKYO, index=1)),
    ],
    "name split": [
        calls_delta(part("get_", "", index=0, id="a")),
        calls_delta(part("weather", "", index=0)),
        calls_delta(part(arguments=PARIS, index=0)),
        calls_delta(part("get_", "", index=1, id="b")),
        calls_delta(part("weather", TOKYO, index=1)),
    ],
    "name growing": [
        calls_delta(part("get_", "", index=0, id="a")),
        calls_delta(part("get_weather", PARIS, index=0, id="a")),
        calls_delta(part("get_", "", index=1, id="b")),
        calls_delta(part("get_weather", TOKYO, index=1, id="b")),
    ],
    "name repeated": [
        calls_delta(part("get_weather", PARIS[:7], index=0, id="a")),
        calls_delta(part("get_weather", PARIS[7:], index=0, id="a")),
        calls_delta(part("get_weather", TOKYO[:7], index=1, id="b")),
        calls_delta(part("get_weather", TOKYO[7:], index=1, id="b")),
    ],
    "name repeated, no id": [
        calls_delta(part("get_weather", PARIS[:7], index=0)),
        calls_delta(part("get_weather", PARIS[7:], index=0)),
        calls_delta(part("get_weather", TOKYO[:7], index=1)),
        calls_delta(part("get_weather", TOKYO[7:], index=1)),
    ],
    "name after the arguments": [
        calls_delta(part(arguments=PARIS, index=0, id="a")),
        calls_delta(part("get_weather", index=0)),
        calls_delta(part(arguments=TOKYO, index=1, id="b")),
        calls_delta(part("get_weather", "", index=1)),
    ],
    "name after the arguments, all index 0": [
        calls_delta(part(arguments=PARIS, index=0, id="a")),
        calls_delta(part("get_weather", index=0, id="a")),
        calls_delta(part(arguments=TOKYO, index=0, id="b")),
        calls_delta(part("get_weather", index=0, id="b")),
    ],
    "arguments null first": [
        calls_delta(part("get_weather", None, index=0, id="a")),
        calls_delta(part(None, PARIS, index=0, id=None)),
        calls_delta(part("get_weather", None, index=1, id="b")),
        calls_delta(part(None, TOKYO, index=1, id=None)),
    ],
    "arguments empty object first": [
        calls_delta(part("get_weather", "{}", index=0, id="a")),
        calls_delta(part(arguments=PARIS[:3], index=0)),
        calls_delta(part(arguments=PARIS[3:], index=0)),
        calls_delta(part("get_weather", {}, index=1, id="b")),
        calls_delta(part(arguments=TOKYO, index=1)),
    ],
    "arguments said again at the end": [
        calls_delta(part("get_weather", PARIS[:7], index=0, id="a")),
        calls_delta(part(arguments=PARIS[7:], index=0)),
        calls_delta(part("get_weather", TOKYO, index=1, id="b")),
        calls_delta(part("get_weather", PARIS, index=0, id="a"), part("get_weather", TOKYO, index=1, id="b")),
    ],
    "arguments growing": [
        calls_delta(part("get_weather", PARIS[:7], index=0, id="a")),
        calls_delta(part(arguments=PARIS[:12], index=0)),
        calls_delta(part(arguments=PARIS, index=0)),
        calls_delta(part("get_weather", TOKYO, index=1, id="b")),
    ],
    "arguments followed by an empty fragment": [
        calls_delta(part("get_weather", PARIS, index=0, id="a")),
        calls_delta(part("", "", index=0)),
        calls_delta(part("get_weather", TOKYO, index=1, id="b")),
        calls_delta(part("get_weather", "", index=1, id="b")),
    ],
    "in the last chunk, with finish_reason stop": [
        delta(content=""),
        delta(
            "stop",
            tool_calls=[part("get_weather", PARIS, index=0, id="a"), part("get_weather", TOKYO, index=1, id="b")],
        ),
    ],
    "without a function around name and arguments": [
        calls_delta({"index": 0, "id": "a", "name": "get_weather", "arguments": PARIS}),
        calls_delta({"index": 1, "id": "b", "name": "get_weather", "arguments": TOKYO}),
    ],
    "second call's rest at an index of its own": [
        calls_delta(part("get_weather", PARIS, index=0, id="a")),
        calls_delta(part("get_weather", "", index=0, id="b")),
        calls_delta(part(arguments=TOKYO[:6], index=1)),
        calls_delta(part(arguments=TOKYO[6:], index=1)),
    ],
    "every call's rest at the index before": [
        calls_delta(part("get_weather", "", index=1, id="a")),
        calls_delta(part(arguments=PARIS, index=0)),
        calls_delta(part("get_weather", "", index=2, id="b")),
        calls_delta(part(arguments=TOKYO, index=1)),
    ],
    "arguments encoded twice": [
        calls_delta(part("get_weather", json.dumps(PARIS), index=0, id="a")),
        calls_delta(part("get_weather", json.dumps(TOKYO), index=0, id="b")),
    ],
    "arguments encoded twice, in fragments": [
        calls_delta(part("get_weather", "", index=0, id="a")),
        calls_delta(part(arguments=json.dumps(PARIS)[:9], index=0)),
        calls_delta(part(arguments=json.dumps(PARIS)[9:], index=0)),
        calls_delta(part("get_weather", json.dumps(TOKYO), index=1, id="b")),
    ],
    "index of the choice as a string": [
        {"choices": [{"index": "0", "delta": {"tool_calls": [part("get_weather", PARIS, id="a")]}}]},
        {"choices": [{"index": "1", "delta": {"tool_calls": [part("get_time", "{}", id="x")]}}]},
        {"choices": [{"index": "0", "delta": {"tool_calls": [part("get_weather", TOKYO, id="b")]}}]},
    ],
    "in a message instead of a delta": [
        {
            "choices": [
                {"message": {"tool_calls": [part("get_weather", PARIS, id="a"), part("get_weather", TOKYO, id="b")]}}
            ]
        },
    ],
    "among other choices": [
        {"choices": [{"index": 1, "delta": {"tool_calls": [part("get_time", "{}", index=0, id="x")]}}]},
        calls_delta(part("get_weather", PARIS, index=0, id="a"), part("get_weather", TOKYO, index=1, id="b")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("chunks", TWO_CALLS.values(), ids=TWO_CALLS.keys())
def test_two_calls_are_assembled(chunks):
    assert calls_of(*chunks) == BOTH
    assert len(set(ids_of(*chunks))) == 2


@pytest.mark.parametrize("chunks", [c for n, c in TWO_CALLS.items() if n != "name split"])
def test_two_calls_are_assembled_without_tool_names(chunks):
    assert calls_of(*chunks, tools=()) == BOTH


@pytest.mark.parametrize("chunks", TWO_CALLS.values(), ids=TWO_CALLS.keys())
def test_two_calls_split_at_every_byte_are_assembled(chunks):
    raw = b"".join(b"data: %b\r\n\r\n" % json.dumps(chunk).encode() for chunk in chunks)

    for cut in range(len(raw)):
        decoder = ChunkDecoder()
        assert calls_of(*decoder.feed(raw[:cut]), *decoder.feed(raw[cut:]), *decoder.finish()) == BOTH


NOISE = [
    {"choices": None, "usage": None},
    {"choices": []},
    {"choices": [], "prompt_filter_results": [{"prompt_index": 0}], "model": "", "id": ""},
    {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
    {"choices": [{"index": 0, "finish_reason": "", "content_filter_offsets": {"end_offset": 44}}]},
    {"choices": [{"index": 1, "delta": {"tool_calls": [part("get_time", "{}", index=0, id="x")], "content": "no"}}]},
    {"choices": [{"index": "1", "delta": {"function_call": {"name": "get_time", "arguments": ""}}}]},
    {"type": "ping"},
    {},
    delta(role="assistant", content="", tool_calls=[], function_call=None, refusal=None, reasoning_content=""),
    delta(tool_calls=[None, "x", 7]),
    delta(content=None, tool_calls=None),
    {"choices": ["x", None, {"index": 0, "delta": "x"}], "usage": "many", "error": None},
    {"object": "chat.completion.chunk", "usage": {"prompt_tokens": 1}, "choices": [{"delta": {}, "logprobs": {}}]},
]


@pytest.mark.parametrize("chunks", TWO_CALLS.values(), ids=TWO_CALLS.keys())
def test_noise_between_fragments_is_ignored(chunks):
    noisy = [noise for chunk in chunks for noise in (*NOISE, chunk)]
    merged = merge(*noisy, *NOISE)

    assert [(call.name, call.arguments) for call in merged.tool_calls] == BOTH
    assert (merged.text, merged.reasoning, merged.refusal, merged.error) == ("", "", "", None)
    assert merged.tool_calls == merge(*chunks).tool_calls


def test_arguments_as_an_object_become_json_text():
    chunk = calls_delta(part("get_weather", {"city": "Zürich", "days": [1, 2]}, index=0, id="a"))

    assert calls_of(chunk) == [("get_weather", '{"city":"Zürich","days":[1,2]}')]


@pytest.mark.parametrize("nothing", ["", None, "null", " ", "{}", {}, [], '""', ...])
def test_no_arguments_are_an_empty_object(nothing):
    assert calls_of(calls_delta(part("get_time", nothing, index=0, id="a"))) == [("get_time", "{}")]


def test_calls_without_arguments_stay_separate():
    by_id = [calls_delta(part(name, "", index=0, id=name)) for name in ("get_time", "get_weather")]
    by_name = [calls_delta(part(name, None)) for name in ("get_time", "get_weather")]
    twice = calls_delta(part("get_time", None), part("get_time", None))

    assert calls_of(*by_id) == [("get_time", "{}"), ("get_weather", "{}")]
    assert calls_of(*by_name) == [("get_time", "{}"), ("get_weather", "{}")]
    assert calls_of(twice) == [("get_time", "{}"), ("get_time", "{}")]


def test_braces_in_strings_do_not_complete_arguments():
    tricky = json.dumps({"city": 'a "}" and \\ {', "more": {"x": [{}]}})
    chunks = [calls_delta(part("get_weather", "", index=0, id="a"))]
    chunks += [calls_delta(part("get_weather", letter, index=0)) for letter in tricky]

    assert calls_of(*chunks) == [("get_weather", tricky)]


GROWING = '{"a": {"b": [1, {"c": "}{"}]}, "d": "x\\"y", "r": {"s": 1}}'


@given(
    cuts=st.sets(st.integers(1, len(GROWING) - 1), min_size=1),
    repeats=st.sets(st.sampled_from(["id", "name", "end"])),
)
def test_cumulative_arguments_count_once(cuts, repeats):
    pieces = [
        GROWING[:cut] for cut in (*sorted(cuts), len(GROWING), *[len(GROWING)] * ("end" in repeats and len(cuts) > 1))
    ]
    chunks = [
        calls_delta(
            part("get_weather" if not n or "name" in repeats else ..., piece, index=0)
            | ({"id": "a"} if not n or "id" in repeats else {})
        )
        for n, piece in enumerate(pieces)
    ]

    assert calls_of(*chunks) == [("get_weather", GROWING)]


@given(cuts=st.sets(st.integers(1, len(GROWING) - 1)), name_again=st.booleans())
@example(cuts={6, 12}, name_again=False)  # two equal pieces, and a third that starts with them
def test_arguments_split_anywhere_are_the_same(cuts, name_again):
    nested = '{"a": {"a": {"a": {"a": 1}}}, "b": "{\\"a\\": "}'
    for text in (GROWING, nested):
        bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        chunks = [
            calls_delta(part("get_weather" if not a or name_again else ..., text[a:b], index=0))
            for a, b in pairwise(bounds)
        ]

        assert calls_of(*chunks) == [("get_weather", text)]


def test_invalid_arguments_are_passed_on_unchanged():
    assert calls_of(calls_delta(part("get_weather", '{"city": "Par', index=0, id="a"))) == [
        ("get_weather", '{"city": "Par')
    ]


def test_legacy_function_call_is_a_call():
    chunks = [
        delta(function_call={"name": "get_weather", "arguments": ""}),
        delta(function_call={"arguments": PARIS[:4]}),
        delta(function_call={"arguments": PARIS[4:]}),
        delta("function_call"),
    ]
    merged = merge(*chunks)

    assert [(call.name, call.arguments) for call in merged.tool_calls] == [("get_weather", PARIS)]
    assert merged.tool_calls[0].id
    assert merged.finish_reason == "function_call"


def test_call_in_both_forms_counts_once():
    chunk = delta(
        tool_calls=[part("get_weather", PARIS, index=0, id="a")],
        function_call={"name": "get_weather", "arguments": PARIS},
    )
    then = delta(function_call={"name": "get_weather", "arguments": PARIS})

    assert calls_of(chunk, then) == [("get_weather", PARIS)]


def test_extra_content_of_a_call_is_kept():
    """Gemini requires its thought_signature in the next request."""
    notes = {"google": {"thought_signature": "abc="}}
    first, second = merge(
        calls_delta(part("get_weather", PARIS, index=0, id="a") | {"extra_content": notes}),
        calls_delta(part("get_time", "{}", index=1, id="b") | {"extra_content": "no object"}),
    ).tool_calls

    assert first.extra_content == notes
    assert second.extra_content is None


def test_json_strings_in_arguments_stay_strings():
    template = json.dumps({"city": "{}", "more": '"{}"'})
    chunks = [calls_delta(part("get_weather", "", index=0, id="a"))]
    chunks += [
        calls_delta(part(arguments=piece, index=0)) for piece in ('{"city": ', '"{}"', ', "more": ', '"\\"{}\\""', "}")
    ]

    assert calls_of(*chunks) == [("get_weather", template)]
    assert calls_of(calls_delta(part("get_weather", '"Paris"', index=0))) == [("get_weather", '"Paris"')]


def test_call_without_a_name_is_dropped():
    assert calls_of(calls_delta(part(None, PARIS, index=0, id="a"))) == []


def test_lowest_choice_is_used_if_there_is_no_choice_0():
    def counted(index: object, chunk: dict) -> dict:
        return {**chunk, "choices": [{**choice, "index": index} for choice in chunk["choices"]]}

    for chunks in TWO_CALLS.values():
        if all(choice.get("index", 0) == 0 for chunk in chunks for choice in chunk["choices"]):
            assert calls_of(*(counted(1, chunk) for chunk in chunks)) == BOTH
    both = [counted(2, delta(content="no")), counted(1, delta(content="yes")), counted(1, delta("stop"))]
    assert merge(*both).text == "yes"
    assert merge(*both).finish_reason == "stop"
    assert merge(*both, delta(content="first")).text == "first"
    assert merge(counted("x", delta(content="odd")), counted([1], delta(content="odd"))).text == ""
