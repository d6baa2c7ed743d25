"""A case of our own for each way in which servers stream what they mean."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagebus.shared.domain.usage import Usage
from stagebus.worker.model.chat_chunks import ChunkDecoder
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer

PARIS = '{"city": "Paris"}'
TOKYO = '{"city": "Tokyo"}'


def merge(
    *chunks: dict, tools: tuple[str, ...] = ("get_weather", "get_time"), taken: tuple[str, ...] = ()
) -> MergedAnswer:
    merger = DeltaMerger(tool_names=tools, taken_ids=taken)
    for chunk in chunks:
        merger.add(chunk)
    return merger.result()


def delta(finish_reason: str | None = None, **fields: object) -> dict:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def calls_delta(*calls: dict) -> dict:
    return delta(tool_calls=list(calls))


def part(name=..., arguments=..., **fields: object) -> dict:
    function = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: value for key, value in function.items() if value is not ...}}


def calls_of(*chunks: dict, **options) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in merge(*chunks, **options).tool_calls]


def ids_of(*chunks: dict, **options) -> list[str]:
    return [call.id for call in merge(*chunks, **options).tool_calls]


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
def test_two_calls_come_out_as_two(chunks):
    assert calls_of(*chunks) == BOTH
    assert len(set(ids_of(*chunks))) == 2


@pytest.mark.parametrize("chunks", [c for n, c in TWO_CALLS.items() if n != "name split"])
def test_two_calls_come_out_as_two_with_the_tools_unknown(chunks):
    assert calls_of(*chunks, tools=()) == BOTH


@pytest.mark.parametrize("chunks", TWO_CALLS.values(), ids=TWO_CALLS.keys())
def test_cut_at_every_byte_merges_the_same(chunks):
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
def test_noise_between_chunks_changes_nothing(chunks):
    noisy = [noise for chunk in chunks for noise in (*NOISE, chunk)]
    merged = merge(*noisy, *NOISE)

    assert [(call.name, call.arguments) for call in merged.tool_calls] == BOTH
    assert (merged.text, merged.reasoning, merged.refusal, merged.error) == ("", "", "", None)
    assert merged.tool_calls == merge(*chunks).tool_calls


def test_arguments_as_an_object_become_text():
    chunk = calls_delta(part("get_weather", {"city": "Zürich", "days": [1, 2]}, index=0, id="a"))

    assert calls_of(chunk) == [("get_weather", '{"city":"Zürich","days":[1,2]}')]


@pytest.mark.parametrize("nothing", ["", None, "null", " ", "{}", {}, [], '""', ...])
def test_no_arguments_are_an_empty_object(nothing):
    assert calls_of(calls_delta(part("get_time", nothing, index=0, id="a"))) == [("get_time", "{}")]


def test_calls_without_arguments_stay_apart():
    by_id = [calls_delta(part(name, "", index=0, id=name)) for name in ("get_time", "get_weather")]
    by_name = [calls_delta(part(name, None)) for name in ("get_time", "get_weather")]
    twice = calls_delta(part("get_time", None), part("get_time", None))

    assert calls_of(*by_id) == [("get_time", "{}"), ("get_weather", "{}")]
    assert calls_of(*by_name) == [("get_time", "{}"), ("get_weather", "{}")]
    assert calls_of(twice) == [("get_time", "{}"), ("get_time", "{}")]


def test_braces_within_strings_end_no_arguments():
    tricky = json.dumps({"city": 'a "}" and \\ {', "more": {"x": [{}]}})
    chunks = [calls_delta(part("get_weather", "", index=0, id="a"))]
    chunks += [calls_delta(part("get_weather", letter, index=0)) for letter in tricky]

    assert calls_of(*chunks) == [("get_weather", tricky)]


GROWING = '{"a": {"b": [1, {"c": "}{"}]}, "d": "x\\"y", "r": {"s": 1}}'


@given(
    cuts=st.sets(st.integers(1, len(GROWING) - 1), min_size=1),
    repeats=st.sets(st.sampled_from(["id", "name", "end"])),
)
def test_arguments_that_each_fragment_says_from_their_beginning_count_once(cuts, repeats):
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
def test_arguments_cut_anywhere_are_the_same(cuts, name_again):
    nested = '{"a": {"a": {"a": {"a": 1}}}, "b": "{\\"a\\": "}'
    for text in (GROWING, nested):
        bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        chunks = [
            calls_delta(part("get_weather" if not a or name_again else ..., text[a:b], index=0))
            for a, b in pairwise(bounds)
        ]

        assert calls_of(*chunks) == [("get_weather", text)]


def test_broken_arguments_are_passed_on_as_the_model_wrote_them():
    assert calls_of(calls_delta(part("get_weather", '{"city": "Par', index=0, id="a"))) == [
        ("get_weather", '{"city": "Par')
    ]


def test_function_call_of_old_is_a_call():
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


def test_both_forms_of_one_call_are_one():
    chunk = delta(
        tool_calls=[part("get_weather", PARIS, index=0, id="a")],
        function_call={"name": "get_weather", "arguments": PARIS},
    )
    then = delta(function_call={"name": "get_weather", "arguments": PARIS})

    assert calls_of(chunk, then) == [("get_weather", PARIS)]


def test_notes_beside_a_call_are_kept():
    """Gemini wants its thought_signature back."""
    notes = {"google": {"thought_signature": "abc="}}
    first, second = merge(
        calls_delta(part("get_weather", PARIS, index=0, id="a") | {"extra_content": notes}),
        calls_delta(part("get_time", "{}", index=1, id="b") | {"extra_content": "no object"}),
    ).tool_calls

    assert first.extra_content == notes
    assert second.extra_content is None


def test_strings_that_hold_json_within_arguments_stay_strings():
    template = json.dumps({"city": "{}", "more": '"{}"'})
    chunks = [calls_delta(part("get_weather", "", index=0, id="a"))]
    chunks += [
        calls_delta(part(arguments=piece, index=0)) for piece in ('{"city": ', '"{}"', ', "more": ', '"\\"{}\\""', "}")
    ]

    assert calls_of(*chunks) == [("get_weather", template)]
    assert calls_of(calls_delta(part("get_weather", '"Paris"', index=0))) == [("get_weather", '"Paris"')]


def test_call_without_a_name_is_none():
    assert calls_of(calls_delta(part(None, PARIS, index=0, id="a"))) == []


def test_id_of_the_provider_is_kept_where_it_is_one():
    chunk = calls_delta(*(part("get_time", "{}", index=i, id=call_id) for i, call_id in enumerate(["a", "", "a", "b"])))

    ids = ids_of(chunk)
    assert ids[0] == "a"
    assert ids[3] == "b"
    assert len(set(ids)) == 4
    assert all(ids)


def test_id_is_never_one_of_an_earlier_round():
    first = ids_of(calls_delta(part("get_time", "{}", index=0), part("get_time", "{}", index=1, id="a")))
    second = ids_of(
        calls_delta(part("get_time", "{}", index=0), part("get_time", "{}", index=1, id="a")), taken=tuple(first)
    )

    assert not set(first) & set(second)
    assert len(set(second)) == 2


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
def test_content_comes_in_many_shapes(content, text):
    assert merge(delta(content=content)).text == text


def test_thinking_parts_are_reasoning():
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Yes"}]
    merged = merge(delta(content=thinking))

    assert (merged.text, merged.reasoning) == ("Yes", "Hm")


@pytest.mark.parametrize(
    "fields", [{"reasoning_content": "Hm"}, {"reasoning": "Hm"}, {"reasoning_content": "Hm", "reasoning": "Hm"}]
)
def test_reasoning_has_several_names_and_counts_once(fields):
    merged = merge(delta(content="", **fields), delta(content="Yes", reasoning_content=None))

    assert (merged.text, merged.reasoning) == ("Yes", "Hm")


def test_reasoning_in_blocks_is_reasoning_where_no_other_field_says_it():
    blocks = [{"type": "reasoning.text", "text": "Hm", "index": 0}, {"type": "reasoning.summary", "summary": "!"}]

    assert merge(delta(reasoning_details=blocks)).reasoning == "Hm!"
    assert merge(delta(reasoning_details=blocks, reasoning="Hm?")).reasoning == "Hm?"
    assert merge(delta(reasoning_details=blocks, reasoning="Hm?")).reasoning_details == blocks
    for odd in (None, "x", 7, {"text": "x"}, [None, "x", {"text": 7}, {}]):
        assert merge(delta(content="Hi", reasoning_details=odd)).reasoning == ""


def test_think_at_the_beginning_is_reasoning_wherever_it_is_cut():
    text = "<think>\nHm, well\n</think>\n\nYes, <think> is a tag."

    merged = merge(*(delta(content=letter) for letter in text))
    assert (merged.text, merged.reasoning) == ("Yes, <think> is a tag.", "Hm, well")


def test_refusal_is_collected():
    assert merge(delta(refusal="I can"), delta(refusal="not")).refusal == "I cannot"


def test_calls_in_text_are_calls_only_where_tools_were_offered():
    chunks = [delta(content=f'Let me see. <tool_call>{{"name": "get_weather", "arguments": {PARIS}}}</tool_call>')]

    assert calls_of(*chunks) == [("get_weather", '{"city":"Paris"}')]
    assert merge(*chunks).text == "Let me see."
    assert merge(*chunks, tools=()).tool_calls == []
    assert "<tool_call>" in merge(*chunks, tools=()).text


def test_calls_in_text_are_left_alone_beside_real_ones():
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
def test_written_call_is_a_call_wherever_it_is_cut(text):
    for cut in range(0, len(text), 3):
        merged = merge(delta(content=text[:cut]), delta(content=text[cut:]), delta("stop"))
        assert [(call.name, json.loads(call.arguments)) for call in merged.tool_calls] == [
            ("get_weather", {"city": "Paris"})
        ]
        assert merged.text == ""
    assert merge(delta(content=text), tools=()).tool_calls == []


def test_call_in_the_reasoning_counts_only_where_nothing_follows():
    call = WRITTEN["hermes"]

    assert calls_of(delta(reasoning_content=call), delta("stop")) == [("get_weather", '{"city":"Paris"}')]
    assert calls_of(delta(reasoning_content=call), delta(content="It is warm.")) == []
    assert calls_of(delta(reasoning_content=f"`{call}`")) == []
    assert calls_of(delta(reasoning_content=call.replace("get_weather", "get_rich"))) == []


def test_example_of_a_call_in_code_is_text():
    text = f"Models call so:\n```\n{WRITTEN['hermes']}\n```\n"

    assert merge(delta(content=text)).text == text
    assert calls_of(delta(content=text)) == []


def test_name_in_a_namespace_is_the_tool_s():
    assert calls_of(calls_delta(part("functions.get_weather", PARIS, index=0))) == [("get_weather", PARIS)]
    assert calls_of(calls_delta(part("functions.other", "{}", index=0))) == [("functions.other", "{}")]


def growing(text: str, step: int = 5) -> list[str]:
    return [text[:end] for end in range(step, len(text) + step, step)]


def test_text_that_each_chunk_says_from_its_beginning_counts_once():
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
def test_text_that_only_repeats_itself_is_kept_as_it_is(pieces):
    assert merge(*(delta(content=piece) for piece in pieces)).text == "".join(pieces)


def test_usage_is_the_last_that_says_something():
    merged = merge(
        {"choices": [], "prompt_filter_results": []},
        {**delta(content="a"), "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}},
        {**delta("stop"), "usage": None},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
        {"choices": [], "usage": {}},
    )

    assert merged.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert merged.tokens == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


def test_usage_may_stand_in_the_choice_and_under_other_names():
    merged = merge({"choices": [{"index": 0, "delta": {}, "usage": {"input_tokens": 3, "output_tokens": 2}}]})

    assert merged.tokens == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    assert merge(delta(content="x")).tokens is None


def test_prompt_tokens_out_of_a_cache_are_counted():
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}}

    assert merge({"choices": [], "usage": usage}).tokens == Usage(
        prompt_tokens=9, completion_tokens=1, total_tokens=10, cached_tokens=8
    )
    for details in (None, 3, {}, {"cached_tokens": "few"}, {"cached_tokens": -1}):
        assert merge({"choices": [], "usage": usage | {"prompt_tokens_details": details}}).tokens == Usage(
            prompt_tokens=9, completion_tokens=1, total_tokens=10
        )


def test_first_model_name_stands():
    assert merge({"model": "", "choices": []}, {"model": "gpt", **delta(content="x")}).model == "gpt"


@pytest.mark.parametrize("not_yet", [None, "", "null"])
def test_finish_reason_is_the_last_that_is_one(not_yet):
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


def test_error_after_the_finish_reason_takes_nothing_back():
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
def test_error_stands_in_many_places(chunk, message):
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
def test_saying_that_all_is_well_is_no_error(chunk):
    merged = merge(delta(content="Hi"), chunk)

    assert (merged.error, merged.usage) == (None, {"total_tokens": 3})


def test_message_at_the_end_says_nothing_twice():
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
def test_message_at_the_end_may_say_more_or_less_than_the_deltas(whole):
    merged = merge(delta(content="\nHel"), delta(content="lo"), {"choices": [{"message": {"content": whole}}]})

    assert merged.text.strip() == whole.strip()


def test_call_in_code_counts_where_the_answer_says_that_it_calls():
    text = f"```json\n{WRITTEN['hermes']}\n```"

    assert calls_of(delta(content=text), delta("stop")) == []
    assert calls_of(delta(content=text), delta("tool_calls")) == [("get_weather", '{"city":"Paris"}')]


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": "3", "completion_tokens": "2"}, (3, 2, 5, None)),
        ({"prompt_tokens": None, "completion_tokens": 2, "total_tokens": None}, (0, 2, 2, None)),
        ({"completion_tokens": 2.0, "total_tokens": 7}, (0, 2, 7, None)),
        ({"prompt_tokens": -1, "total_tokens": "many", "completion_tokens": [1]}, (0, 0, 0, None)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}, "cached_tokens": 2}, (3, 0, 3, 1)),
        ({"prompt_tokens": 3, "cached_tokens": 2}, (3, 0, 3, 2)),
        ({"prompt_tokens": 3, "prompt_cache_hit_tokens": 2, "prompt_tokens_details": None}, (3, 0, 3, 2)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": None}}, (3, 0, 3, None)),
    ],
)
def test_usage_is_counted_in_whatever_form(usage, counted):
    tokens = merge({"choices": [], "usage": usage}).tokens

    assert tokens is not None
    assert (tokens.prompt_tokens, tokens.completion_tokens, tokens.total_tokens, tokens.cached_tokens) == counted


def test_usage_may_stand_in_groq_s_note():
    note = {"x_groq": {"id": "r", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}}
    asked = {"choices": [], "usage": {"total_tokens": 7}}

    assert merge(delta("stop") | note).usage == note["x_groq"]["usage"]
    assert merge(delta("stop") | note, asked).usage == merge(asked, delta("stop") | note).usage == {"total_tokens": 7}
    assert merge(delta("stop") | {"x_groq": {"id": "r"}}).usage is None


@pytest.mark.parametrize(
    "reason", ["function_call", "eos", "eos_token", "stop_sequence", "content_filter", "sensitive"]
)
def test_finish_reason_of_any_name_is_kept(reason):
    assert merge(delta(content="a"), delta(reason)).finish_reason == reason


def test_what_is_said_beside_the_text_leaves_it_alone():
    """Perplexity's sources, logprobs, annotations, a note of Hunyuan's, sound, Cloudflare's padding."""
    merged = merge(
        {**delta(content="Hi", role="assistant", annotations=[{"type": "url_citation"}], audio={"id": "x"}, p="abc"),
         "citations": ["https://a.example"], "search_results": [{"title": "A"}], "note": "made by AI"},
        {"choices": [{"delta": {"content": " there"}, "logprobs": {"content": [{"token": "x", "logprob": None}]}}]},
        {"choices": [{"delta": None, "finish_reason": "stop"}]},
        {"choices": None, "usage": None},
    )  # fmt: skip

    assert (merged.text, merged.tool_calls, merged.finish_reason, merged.error) == ("Hi there", [], "stop", None)


def test_other_choices_are_passed_over():
    two = {"choices": [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]}

    assert merge(two, {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}) == merge(delta(content="yes"))


def test_choices_that_are_counted_from_one_are_the_answer_where_there_is_no_other():
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
def test_nothing_that_is_json_makes_it_fail(values):
    chunks = [value for value in values if isinstance(value, dict)]
    chunks += [{"choices": value, "usage": value, "error": value} for value in values]
    chunks += [{"choices": [{"delta": value}, {"delta": {"content": value}, "usage": value}]} for value in values]
    chunks += [
        {"choices": [{"delta": {"tool_calls": [value, {"function": value}], "content": [value]}}]} for value in values
    ]

    merged = merge(*chunks)
    assert len({call.id for call in merged.tool_calls}) == len(merged.tool_calls)
    assert merged.tokens is None or merged.tokens.total_tokens >= 0
