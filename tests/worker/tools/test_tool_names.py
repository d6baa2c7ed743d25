import re

from hypothesis import given
from hypothesis import strategies as st

from stagebus.worker.tools.tool_names import name_tools


def test_name_is_the_source_s_and_the_tool_s():
    assert name_tools("files", ["read", "write-all", "a.b/c"]) == {
        "read": "files__read", "write-all": "files__write-all", "a.b/c": "files__a_b_c",
    }  # fmt: skip


def test_colliding_tool_names_are_made_unique():
    named = name_tools("s", ["a.b", "a_b", "a/b"])

    assert named["a_b"] == "s__a_b"
    assert len(set(named.values())) == 3
    assert all(re.fullmatch(r"s__a_b(_[0-9a-f]{8})?", name) for name in named.values())


def test_long_name_is_cut_to_the_same_each_time():
    long = "x" * 100
    named = name_tools("s", [long, long + "y"])

    assert len(set(named.values())) == 2
    assert name_tools("s", [long])[long] == named[long]


@given(st.lists(st.text(min_size=1, max_size=120), max_size=20))
def test_any_names_become_fit_and_distinct(names):
    named = name_tools("source", names)

    assert named.keys() == set(names)
    assert len(set(named.values())) == len(named)
    assert all(re.fullmatch(r"source__[a-zA-Z0-9_-]{1,56}", name) for name in named.values())
