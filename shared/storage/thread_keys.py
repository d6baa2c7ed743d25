"""The thread's part of the scripts that create, claim, end and delete runs: its keys and its arguments.

A script of a run in a thread gets the thread's keys after its own, in the order in which `include/thread.lua` unpacks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from stagebus.shared.domain import threads
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.domain.threads import ThreadRequest
from stagebus.shared.errors import StagebusError
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import Partition
from stagebus.shared.thread_errors import (
    ParentNotEnded,
    ParentNotFound,
    ThreadBusy,
    ThreadDeleting,
    ThreadFull,
    ThreadQueueFull,
)

INTERRUPTED: Final = "a newer message of the conversation interrupted the run"
# The message to a run's worker over its control channel.
CANCEL_MESSAGE: Final = b"cancel"
# Each turn has up to eight fields, and a run that left before its turn has one.
FIELDS_MAX: Final = 10 * threads.TURNS_MAX


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """How long the keys of a thread live after its last activity, and the virtual times after the last creation."""

    ttl_s: float
    life_s: float


def thread_group(partition: Partition, thread_key: str, tenant: str) -> list[str]:
    """Returns the keys of a thread, and of the queue that its next run joins.

    Args:
        partition: that of the thread's runs.
    """
    return [
        thread_key,
        keys.thread_turns(thread_key),
        keys.thread_in(thread_key),
        keys.thread_out(thread_key),
        keys.thread_line(thread_key),
        keys.thread_order(thread_key),
        keys.thread_live(thread_key),
        keys.threads_busy(keys.tag_of(thread_key)),
        keys.threads_of_tenant(keys.tag_of(thread_key), tenant),
        partition.queue,
        partition.wakeup,
        partition.virtual_time,
        partition.tenant_virtual_time(tenant),
    ]


def thread_args(times: ThreadTimes) -> dict[str, Any]:
    """Returns the arguments of `open_thread`."""
    return {
        "ttl_ms": round(times.ttl_s * 1000),
        "life_ms": round(times.life_s * 1000),
        "wakeups_max": keys.WAKEUPS_MAX,
        "never_score": keys.THROTTLED_SCORE,
    }


@dataclass(frozen=True, slots=True)
class ThreadAdmission:
    """A new run that joins a thread.

    Attributes:
        life_id: of the thread, if this run is its first.
        expected_active: the active run, whose record the script may look at and cancel; empty for none.
        expected_interrupt: the interrupt that waits and that a newer one replaces; empty for none.
        looks: how many replies have said which runs to expect.
        digest: of the request; a client whose POST is refused because of its own run recognises it.
    """

    request: ThreadRequest
    times: ThreadTimes
    life_id: str
    expected_active: str = ""
    expected_interrupt: str = ""
    looks: int = 0
    digest: str = ""

    def keys(self, partition: Partition) -> list[str]:
        """Returns the last keys of `create.lua`."""
        identity = self.request.identity
        group = thread_group(partition, keys.thread(identity), identity.tenant)
        group += [partition.outbox, partition.outbox_bell]
        if self.expected_active:
            group += [keys.run(self.expected_active), keys.control(self.expected_active)]
        return group + ([keys.run(self.expected_interrupt)] if self.expected_interrupt else [])

    def encode(self) -> bytes:
        """Returns the request as `create.lua` reads it."""
        identity = self.request.identity
        return orjson.dumps(
            thread_args(self.times)
            | {
                "tenant": identity.tenant,
                "user": identity.user,
                "thread_id": identity.thread_id,
                "gen": self.life_id,
                "digest": self.digest,
                "on_active": self.request.on_active.value,
                "parent": self.request.parent_run_id or "",
                "expected_active": self.expected_active,
                "expected_interrupt": self.expected_interrupt,
                "turns_max": threads.TURNS_MAX,
                "bytes_max": threads.THREAD_MAX_BYTES,
                "waiting_max": threads.WAITING_MAX,
                "fields_max": FIELDS_MAX,
                "parked": RunStatus.PARKED.value,
                "cancel_reason": INTERRUPTED,
                "cancel_message": CANCEL_MESSAGE.decode(),
            }
        )

    def refusal(self, reply: Sequence[Any]) -> StagebusError:
        """Returns the error for a reply of `create.lua` that refuses the run because of its thread."""
        thread_id, parent = self.request.identity.thread_id, self.request.parent_run_id or ""
        match reply:
            case [b"busy", active, digest]:
                return ThreadBusy(thread_id, active.decode(), digest.decode())
            case [b"too_many_waiting", limit, _]:
                return ThreadQueueFull(thread_id, limit)
            case [b"thread_full", _, _]:
                return ThreadFull(thread_id)
            case [b"thread_deleting", _, _]:
                return ThreadDeleting(thread_id)
            case [b"parent_not_found", _, _]:
                return ParentNotFound(parent)
            case [b"parent_not_ended", _, _]:
                return ParentNotEnded(parent)
        raise AssertionError("create.lua returns one of these")


@dataclass(frozen=True, slots=True)
class RunThread:
    """The thread of a run."""

    run_id: str
    thread_key: str
    tenant: str
    times: ThreadTimes

    def keys(self, partition: Partition) -> list[str]:
        """Returns the last keys of a script of the run."""
        return thread_group(partition, self.thread_key, self.tenant)

    def args(self) -> dict[str, Any]:
        """Returns the script's arguments about the thread."""
        return thread_args(self.times) | {"run_id": self.run_id}


@dataclass(frozen=True, slots=True)
class ThreadEnd:
    """The end of a run in a thread.

    Attributes:
        code: the code of the run's error, or empty.
        out: the messages that the run resulted in, JSON.
    """

    thread: RunThread
    code: str = ""
    out: bytes = b"[]"

    def keys(self, partition: Partition) -> list[str]:
        """Returns the last keys of `append.lua`."""
        return self.thread.keys(partition)

    def fields(self, status: str) -> dict[str, Any]:
        """Returns the arguments for a run that ended with this status."""
        return self.thread.args() | {
            "status": status,
            "code": self.code,
            "out": self.out.decode(),
            "is_off_branch": self.code in threads.CODES_OFF_BRANCH,
        }
