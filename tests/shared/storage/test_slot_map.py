"""The map of a cluster's slots: when it is read, from which node, and what a node that cannot be asked changes."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.redis_url import Address
from stagebus.shared.domain.partitions import SLOTS
from stagebus.shared.storage import slot_map
from stagebus.shared.storage.slot_map import SlotMap
from tests.support.waiting import until_equal

A, B, C = Address("a", 1), Address("b", 2), Address("c", 3)
LAST = SLOTS - 1


def entry(node: Address) -> list[Any]:
    return [node.host.encode(), node.port, b"id"]


class Nodes:
    """Nodes that all know the same map."""

    def __init__(self, *ranges: list[Any]) -> None:
        self.ranges = list(ranges)
        self.down: set[Address] = set()
        self.hanging: set[Address] = set()
        self.asked: list[Address] = []

    async def ask(self, node: Address) -> Any:
        self.asked.append(node)
        if node in self.hanging:
            await asyncio.Event().wait()
        if node in self.down:
            raise RedisConnectionError(f"{node} is down")
        return self.ranges


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_map, "REFRESH_PAUSE_S", 0)


async def test_map_is_read_when_a_slot_is_wanted_and_once_for_all_that_want_one() -> None:
    nodes = Nodes([0, 99, entry(A)], [100, LAST, entry(B), entry(C)])
    slots = SlotMap([A], nodes.ask)
    assert slots.node_of(0) is None
    assert slots.any_node() is None

    assert await asyncio.gather(*(slots.find_node(slot) for slot in (0, 99, 100, LAST))) == [A, A, B, B]
    assert nodes.asked == [A]
    assert slots.primaries() == [A, B]
    assert slots.any_node() in (A, B)


async def test_moved_slot_is_patched_at_once_and_the_rest_in_the_background() -> None:
    nodes = Nodes([0, LAST, entry(A)])
    slots = SlotMap([A], nodes.ask)
    await slots.find_node(0)
    assert slots.primaries() == [A]
    nodes.ranges = [[0, LAST, entry(B)]]
    slots.on_moved(7, B)

    assert (slots.node_of(7), slots.node_of(8)) == (B, A)
    assert slots.primaries() == [A, B]
    await until_equal(lambda: slots.node_of(8), B)
    assert slots.primaries() == [B]
    slots.on_moved(7, B)
    await slots.refresh()
    assert len(nodes.asked) == 3, "what is known already causes no reading"


async def test_every_node_that_was_ever_named_can_be_asked() -> None:
    """The seed and all primaries of the map are gone; only a replica is left."""
    nodes = Nodes([0, LAST, entry(A), entry(C)])
    slots = SlotMap([B], nodes.ask)
    await slots.refresh()
    nodes.down = {A, B}
    nodes.ranges = [[0, LAST, entry(C)]]
    await slots.refresh()

    assert slots.primaries() == [C]
    assert nodes.asked[0] == B
    assert nodes.asked[-1] == C


async def test_node_that_does_not_answer_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_map, "ASK_TIMEOUT_S", 0.01)
    nodes = Nodes([0, LAST, entry(B)])
    nodes.hanging = {A}
    slots = SlotMap([B, A], nodes.ask)

    assert await slots.find_node(5) == B


async def test_error_names_the_failure_if_no_node_answers_and_the_next_caller_asks_again() -> None:
    nodes = Nodes([0, LAST, entry(A)])
    nodes.down = {A, B}
    slots = SlotMap([A, B], nodes.ask)
    with pytest.raises(RedisConnectionError, match="is down"):
        await slots.find_node(0)
    nodes.down = set()

    assert await slots.find_node(0) == A


async def test_slot_without_a_node_is_a_connection_error() -> None:
    slots = SlotMap([A], Nodes([0, 9, entry(A)]).ask)

    assert await slots.find_node(9) == A
    with pytest.raises(RedisConnectionError, match="no node of the cluster has slot 10"):
        await slots.find_node(10)
    with pytest.raises(RedisConnectionError, match=f"{SLOTS - 10} of the cluster's {SLOTS} slots have no node"):
        await slots.read_primaries()


@pytest.mark.parametrize("host", [None, b"", b"?"])
async def test_node_that_does_not_know_its_host_is_reached_as_it_was(host: bytes | None) -> None:
    slots = SlotMap([A], Nodes([0, LAST, [host, 9, b"id"]]).ask)

    assert await slots.find_node(0) == Address("a", 9)


async def test_readings_keep_a_distance_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_map, "REFRESH_PAUSE_S", 0.1)
    nodes = Nodes([0, LAST, entry(A)])
    slots = SlotMap([A], nodes.ask)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await slots.refresh()
    first = loop.time() - started
    await slots.refresh()

    assert first < 0.1 <= loop.time() - started


async def test_listeners_hear_of_changes_only() -> None:
    nodes = Nodes([0, LAST, entry(A)])
    slots = SlotMap([A], nodes.ask)
    heard: list[list[Address]] = []
    listener = lambda: heard.append(slots.primaries())  # noqa: E731
    slots.add_listener(listener)
    await slots.refresh()
    await slots.refresh()
    nodes.ranges = [[0, LAST, entry(B)]]
    await slots.refresh()
    slots.remove_listener(listener)
    nodes.ranges = [[0, LAST, entry(C)]]
    await slots.refresh()

    assert heard == [[A], [B]]


async def test_number_of_known_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers get a new address at each start."""
    monkeypatch.setattr(slot_map, "NODES_SEEN_MAX", 3)
    nodes = Nodes([0, LAST, entry(A)])
    slots = SlotMap([A], nodes.ask)
    for port in range(10):
        nodes.ranges = [[0, LAST, entry(Address("n", port))]]
        await slots.refresh()
    nodes.down = {Address("n", port) for port in range(10)}
    nodes.asked.clear()
    with pytest.raises(RedisConnectionError):
        await slots.refresh()

    assert nodes.asked == [Address("n", 9), Address("n", 8), Address("n", 7)]


async def test_close_ends_a_reading() -> None:
    nodes = Nodes()
    nodes.hanging = {A}
    slots = SlotMap([A], nodes.ask)
    waiting = asyncio.create_task(slots.find_node(0))
    await until_equal(lambda: nodes.asked, [A])
    await slots.aclose()

    with pytest.raises(RedisConnectionError):
        await waiting
