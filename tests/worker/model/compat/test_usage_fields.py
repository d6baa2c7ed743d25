"""Token counts in the usage objects of all providers."""

import pytest

from stagebus.shared.domain.usage import Usage
from tests.support.chat_deltas import delta, merge


def test_last_usage_with_content_counts():
    merged = merge(
        {"choices": [], "prompt_filter_results": []},
        {**delta(content="a"), "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}},
        {**delta("stop"), "usage": None},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
        {"choices": [], "usage": {}},
    )

    assert merged.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert merged.tokens == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


def test_usage_in_the_choice_under_other_names_is_read():
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
def test_usage_of_any_form_is_parsed(usage, counted):
    tokens = merge({"choices": [], "usage": usage}).tokens

    assert tokens is not None
    assert (tokens.prompt_tokens, tokens.completion_tokens, tokens.total_tokens, tokens.cached_tokens) == counted


def usages(*parts: dict) -> Usage | None:
    return merge(*({**delta(), "usage": part} for part in parts)).tokens


def test_largest_usage_counts_and_split_usage_is_joined():
    counts = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    zeros = dict.fromkeys(counts, 0)
    details = {"prompt_tokens_details": {"cached_tokens": 8}}

    assert usages(counts, zeros) == usages(zeros, counts) == usages({"total_tokens": 1}, counts) == Usage(**counts)
    assert usages({"prompt_tokens": 100}, {"completion_tokens": 20}) == Usage(**counts)
    assert usages({"input_tokens": 100, "total_tokens": 100}, {"output_tokens": 20, "total_tokens": 20}) == Usage(
        **counts
    )
    assert usages(counts | details, zeros | {"prompt_tokens_details": {"cached_tokens": 0}}).cached_tokens == 8


def test_usage_in_groq_s_extension_is_read():
    note = {"x_groq": {"id": "r", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}}
    asked = {"choices": [], "usage": {"total_tokens": 7}}

    assert merge(delta("stop") | note).usage == note["x_groq"]["usage"]
    assert merge(delta("stop") | note, asked).usage == merge(asked, delta("stop") | note).usage == {"total_tokens": 7}
    assert merge(delta("stop") | {"x_groq": {"id": "r"}}).usage is None


def test_absurd_counts_do_not_count():
    """The sums over all runs have 64 bits in Redis; beyond them no run could be accounted."""
    assert merge({"choices": [], "usage": {"prompt_tokens": 2**53, "completion_tokens": 2**50}}).tokens == Usage()
    assert merge({"choices": [], "usage": {"prompt_tokens": 10**8}}).tokens.total_tokens == 10**8
