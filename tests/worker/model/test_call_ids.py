"""Call ids: the provider's if it is unique, else a new one."""

from tests.support.chat_deltas import calls_delta, ids_of, part


def test_call_id_of_the_provider_is_kept_if_unique():
    chunk = calls_delta(*(part("get_time", "{}", index=i, id=call_id) for i, call_id in enumerate(["a", "", "a", "b"])))

    ids = ids_of(chunk)
    assert ids[0] == "a"
    assert ids[3] == "b"
    assert len(set(ids)) == 4
    assert all(ids)


def test_call_id_differs_from_earlier_rounds():
    first = ids_of(calls_delta(part("get_time", "{}", index=0), part("get_time", "{}", index=1, id="a")))
    second = ids_of(
        calls_delta(part("get_time", "{}", index=0), part("get_time", "{}", index=1, id="a")), taken=tuple(first)
    )

    assert not set(first) & set(second)
    assert len(set(second)) == 2
