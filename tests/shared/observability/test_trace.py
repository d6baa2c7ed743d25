import asyncio

import pytest

from stagebus.shared.observability import trace
from stagebus.shared.observability.trace import Trace, bound

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd8448eb211c80319c", "A.b_c-9", "x" * 128])
def test_sane_request_id_is_kept(given: str) -> None:
    assert Trace.from_headers(given, None).request_id == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "two words", "a\nb", "a;b", "é"])
def test_other_request_ids_are_replaced(given: str | None) -> None:
    made = Trace.from_headers(given, None).request_id

    assert made != given
    assert len(made) == 32


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        (PARENT, True),
        (None, False),
        ("", False),
        (PARENT.upper(), False),
        (PARENT + "-x", False),
        (PARENT + "\n", False),
        ("ff" + PARENT[2:], False),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01", False),
    ],
)
def test_only_what_is_a_traceparent_is_passed_on(given: str | None, is_kept: bool) -> None:
    made = Trace.from_headers("id", given)

    assert made.headers() == {"X-Request-ID": "id"} | ({"traceparent": given} if is_kept else {})


async def test_tasks_inherit_the_trace_of_their_creator() -> None:
    async def whose() -> Trace:
        await asyncio.sleep(0)
        return trace.current()

    with bound(Trace("a")):
        of_a = asyncio.create_task(whose())
    with bound(Trace("b")):
        of_b = asyncio.create_task(whose())

    assert [(await task).request_id for task in (of_a, of_b)] == ["a", "b"]
    assert trace.current() == trace.NO_TRACE
