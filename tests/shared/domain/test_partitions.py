"""Slots as Redis Cluster computes them, and partitions that nodes share evenly."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot as slot_by_redis_py

from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.partitions import SLOTS, TAGS, key_slot, partition_of, tag_of

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("foo", "foo"), ("{user}:a", "user"), ("a{user}b{other}", "user"), ("a{}b", "a{}b"), ("{}{a}", "{}{a}"),
        ("a{b", "a{b"), ("a}b{c}", "c"), ("a{{b}}c", "{b"), ("", ""),
    ],
)  # fmt: skip
def test_slot_is_that_of_the_text_in_the_first_braces(key: str, hashed: str) -> None:
    assert key_slot(key) == key_slot(key.encode()) == slot_by_redis_py(hashed.encode())


def test_slot_of_a_known_key() -> None:
    """From the specification of Redis Cluster: the CRC16 of this text is 0x31C3."""
    assert key_slot("123456789") == 0x31C3 % SLOTS


@given(st.text(alphabet="ab{}", max_size=8))
def test_slot_is_the_one_that_redis_py_computes(key: str) -> None:
    assert key_slot(key) == slot_by_redis_py(key.encode())


def test_tag_is_the_pair_closest_to_the_middle_of_its_share_of_the_slots() -> None:
    pairs = ["".join(pair) for pair in product(LETTERS, repeat=2)]
    share = SLOTS // 32
    middles = range(share // 2, SLOTS, share)

    assert [min(pairs, key=lambda pair: (abs(key_slot(pair) - middle), pair)) for middle in middles] == list(TAGS)


@pytest.mark.parametrize("nodes", range(1, 17))
def test_nodes_with_equal_shares_of_the_slots_have_equal_numbers_of_partitions(nodes: int) -> None:
    """Each node has one range of slots, as `redis-cli --cluster create` assigns them."""
    ends = [round(node * SLOTS / nodes) for node in range(nodes + 1)]
    counts = [sum(first <= key_slot(tag) < end for tag in TAGS) for first, end in pairwise(ends)]

    assert sum(counts) == len(TAGS) == 32
    assert max(counts) - min(counts) <= 1


def test_every_number_has_a_partition() -> None:
    assert [tag_of(number) for number in range(64)] == [*TAGS, *TAGS]
    assert tag_of(2**64 + 5) == TAGS[5]


@pytest.mark.parametrize("run_id", ["", "x", "01J9ZK3V7Q8E5W2R4T6Y8A0PCE", "01J9ZK3V7Q8E5W2R4T6Y8A0PIL", "\u0130CE"])
def test_id_that_does_not_hash_to_a_tag_has_no_partition(run_id: str) -> None:
    assert partition_of(run_id) == ""


def test_new_run_id_has_no_partition() -> None:
    assert {partition_of(new_run_id()) for _ in range(100)} == {""}
