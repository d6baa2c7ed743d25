"""The keys of each script have one slot on a cluster, whatever the run; on one server they have their old names."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stagebus.shared.domain import ids
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.partitions import TAGS, key_slot
from stagebus.shared.domain.runs import RUN_STAGE, STAGE_IDS, RunStatus
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.threads import ThreadIdentity, ThreadRequest
from stagebus.shared.storage import keys, queue_scripts, run_scripts, thread_scripts
from stagebus.shared.storage.partition_keys import CLUSTER, ONE_PARTITION, PARTITIONED, UNTAGGED, partitioning_of
from stagebus.shared.storage.run_scripts import LogEntry, TerminalState
from stagebus.shared.storage.thread_keys import RunThread, ThreadAdmission, ThreadEnd, ThreadTimes
from stagebus.shared.store import parking, quotas, run_deletion
from stagebus.shared.store.parking import Seen

IDENTITY = ThreadIdentity("acme", "ann", "talk")
RUN = ids.new_run_id_in(IDENTITY.tag)
OTHER = ids.new_run_id_in(IDENTITY.tag)
TIMES = ThreadTimes(60, 60)
THREAD = RunThread(RUN, keys.thread(IDENTITY), "acme", TIMES)
END = TerminalState(RunStatus.SUCCEEDED, 60, thread=ThreadEnd(THREAD))
ADDED = LogEntry(RUN_STAGE, "done", b"{}")
KEY = CLUSTER.of_run(RUN).idempotency("acme", "k")


class Asked(Exception):
    """The script was sent, and its keys are known."""


class Connection:
    partitioning = CLUSTER

    def __init__(self) -> None:
        self.keys: list[str] = []

    def execute_command(self, *args: Any) -> Awaitable[Any]:
        count = int(args[2])
        # The limits are not among the keys, because users of Redis may only read them; but the script reads them.
        self.keys = [*args[3 : 3 + count], *(arg for arg in args if str(arg).startswith("sb:limits"))]
        raise Asked


def admission() -> ThreadAdmission:
    request = ThreadRequest(IDENTITY, ({"role": "user", "content": "Hi"},))
    return ThreadAdmission(request, TIMES, RUN, expected_active=OTHER, expected_interrupt=OTHER)


SCRIPTS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "create": lambda c: run_scripts.create(
        c, RUN, tenant="acme", model="m", request=b"{}", event="run_queued", data=b"{}", life_s=60, idempotency=KEY,
        user="ann", thread=admission(),
    ),
    "claim": lambda c: run_scripts.claim(c, RUN, "w", token="t", thread_key=THREAD.thread_key),
    "append": lambda c: run_scripts.append(
        c, RUN, attempt=1, before=EventId(1, 1), entries=[ADDED], message=b"", end=END, stage_ids=list(STAGE_IDS),
        tenant="acme",
    ),
    "cancel": lambda c: run_scripts.cancel(c, RUN, thread=THREAD),
    "list_due": lambda c: queue_scripts.list_due_with_lags(c, 5, CLUSTER.of_run(RUN)),
    "acquire": lambda c: queue_scripts.acquire(c, RUN, "t", 5),
    "admit": lambda c: queue_scripts.admit(c, RUN, tenant="acme"),
    "account": lambda c: queue_scripts.account(
        c, RUN, tenant="acme", ended=queue_scripts.EndedRun(), retention_s=60, life_s=60,
        run_keys=CLUSTER.of_run(RUN).all_of_run(RUN, KEY),
    ),
    "renew": lambda c: queue_scripts.renew(c, RUN, token="t", attempt=1, lease_s=5),
    "release": lambda c: queue_scripts.release(c, RUN, token="t", attempt=1),
    "finish": lambda c: queue_scripts.finish(c, RUN, "t"),
    "requeue": lambda c: queue_scripts.requeue(c, RUN, b"", THREAD.thread_key),
    "keep_active": lambda c: queue_scripts.keep_active(
        c, RUN, tenant="acme", user="ann", life_s=60, other_keys=CLUSTER.of_run(RUN).all_of_run(RUN, KEY)
    ),
    "reserve": lambda c: queue_scripts.reserve(
        c, RUN, tenant="acme", attempt=1, wanted=5, tokens_per_day=9, life_s=60
    ),
    "delete": lambda c: run_deletion.delete_ended(c, RUN, RunOwner("acme"), KEY, "ann", THREAD),
    "park": lambda c: parking.park(c, RUN, token="t", attempt=1, due_ms=1, seen=Seen(), tenant="acme"),
    "decide": lambda c: parking.decide(c, RUN, "call", "{}"),
    "deliver": lambda c: parking.deliver(c, RUN, "1-1", "call", CallResult(content="x")),
    "lease_call": lambda c: parking.lease_call(c, RUN, "1-1", "call", holder="h", is_once=False),
    "steer": lambda c: thread_scripts.steer(
        c, THREAD, attempt=1, before=EventId(1, 1), added=ADDED, message=b"", joining_id=OTHER, end=END, done=b"{}"
    ),
    "mend": lambda c: thread_scripts.mend(c, THREAD.thread_key, "acme", TIMES, active=RUN),
    "drop": lambda c: thread_scripts.drop(c, THREAD.thread_key, "acme", TIMES),
    "forget": lambda c: thread_scripts.forget(c, THREAD.thread_key, "acme", TIMES, RUN),
    "rate": lambda c: quotas.count_request(c, "acme", 5),
    "streams": lambda c: quotas.report_streams(c, "acme", "g", 1, 5, is_new=True),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
async def test_keys_of_a_script_have_one_slot(name: str) -> None:
    connection = Connection()
    with pytest.raises(Asked):
        await SCRIPTS[name](connection)

    assert len({key_slot(key) for key in connection.keys}) == 1, connection.keys


def test_names_in_a_partition() -> None:
    partition = CLUSTER.of_tag("CE")

    assert (partition.queue, UNTAGGED.queue) == ("sb:queue:{CE}", "sb:queue")
    assert (partition.runs("acme"), UNTAGGED.runs("acme")) == ("sb:runs:{CE}:acme", "sb:runs:acme")
    assert partition.totals_of_minute(5) == "sb:totals:{CE}:5"
    run_id = ids.new_run_id_in("CE")
    assert (partition.job(run_id), UNTAGGED.job(run_id)) == (f"arq:job:{{{run_id}}}", f"arq:job:{run_id}")


def test_partition_of_a_run_depends_on_the_mode() -> None:
    tagged, untagged = ids.new_run_id_in("CE"), ids.new_run_id()

    assert ONE_PARTITION.of_run(tagged) == ONE_PARTITION.of_run(untagged) == UNTAGGED
    assert PARTITIONED.of_run(tagged) == CLUSTER.of_run(tagged) == CLUSTER.of_tag("CE")
    assert PARTITIONED.of_run(untagged) == UNTAGGED
    assert [partition.tag for partition in CLUSTER.partitions] == list(TAGS)
    assert partitioning_of(object()) is ONE_PARTITION
