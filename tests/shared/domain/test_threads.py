"""The identity of threads: whose they are is part of it, and no text of a client is in a key."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.storage import keys


def test_tenant_user_and_id_all_distinguish_threads() -> None:
    """In particular, no text can move from one part to its neighbour."""
    identities = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("", "ab", "c"), ("a", "", "c"), ("a", "", "bc")]

    assert len({ThreadIdentity(*parts).digest for parts in identities}) == len(identities)


def test_digest_and_partition_never_change() -> None:
    """Redis holds them for as long as threads are kept."""
    identity = ThreadIdentity("acme", "ada", "chat-7")

    assert (identity.digest, identity.tag) == ("a4c8faa2aa95f21b796a8487103d8ba3", "6V")


@given(st.text(max_size=20), st.text(max_size=20))
def test_keys_of_a_thread_are_in_one_slot_and_contain_no_text_of_clients(user: str, thread_id: str) -> None:
    identity = ThreadIdentity("t", user, thread_id)
    thread = keys.thread(identity)
    parts = [keys.thread_turns, keys.thread_in, keys.thread_out, keys.thread_line, keys.thread_order, keys.thread_live]
    made = [thread, *(part(thread) for part in parts), keys.threads_of_tenant(identity.tag, "t")]
    made.append(keys.threads_busy(identity.tag))

    assert keys.tag_of(thread) == identity.tag
    assert {key_slot(key.encode()) for key in made} == {key_slot(identity.tag.encode())}
    assert thread == f"sb:thread:{{{identity.tag}}}:{identity.digest}"
    assert len(set(made)) == len(made)


def test_threads_spread_over_all_partitions() -> None:
    tags = Counter(ThreadIdentity("t", "", str(number)).tag for number in range(3200))

    assert set(tags) == set(TAGS)
    assert max(tags.values()) < 200
