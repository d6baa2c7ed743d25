"""Conversations: their identity, and what one holds.

    tenant acme, user ada, thread_id "chat-7"   ──▶   digest 5b0f…   ──▶   partition CE

A run that became active in its thread is a turn. At most one run of a thread is active; further ones wait for their
turn. Turns form a tree: each has a parent, and what a run sees are the messages on its path from the root.
"""

import re
from binascii import crc32
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

import orjson

from stagebus.shared.domain.partitions import tag_of

_DIGEST_CHARS: Final = 32
# The parent of a turn that begins a branch at the root.
ROOT: Final = "root"

TURNS_MAX: Final = 1000
THREAD_MAX_BYTES: Final = 8 * 2**20
WAITING_MAX: Final = 16

# A run that ended so would fail each later turn as well, so the branch continues from its parent.
CODES_OFF_BRANCH: Final = frozenset({"model_rejected", "history_too_long", "attempts_exhausted"})

Messages = Sequence[dict[str, Any]]

THREAD_ID_MAX_CHARS: Final = 128
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Clients resolve these as steps of a path, also if they are percent-encoded.
_DOT_SEGMENTS: Final = frozenset({".", ".."})


def is_thread_id(text: str) -> bool:
    """Returns whether a thread can have this id: any text that fits into a URL."""
    return 1 <= len(text) <= THREAD_ID_MAX_CHARS and not _CONTROL.search(text) and text not in _DOT_SEGMENTS


class OnActive(StrEnum):
    """Decides about a new run while another run of its thread is active."""

    REJECT = "reject"  # the new run is not created
    ENQUEUE = "enqueue"  # it waits for its turn
    INTERRUPT = "interrupt"  # the active run is cancelled, and the new one is next
    STEER = "steer"  # its messages join the active run; if that ends first, it waits for its turn


@dataclass(frozen=True)
class ThreadIdentity:
    """A thread is identified by its tenant, its user and the id that the client chose.

    Attributes:
        user: the person within the tenant; empty if there is none. Two users may choose one id.
    """

    tenant: str
    user: str
    thread_id: str

    @cached_property
    def digest(self) -> str:
        """Returns the name of the thread in Redis keys, which contain no text of clients."""
        text = f"{self.tenant}\0{self.user}\0{self.thread_id}"
        return sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARS]

    @cached_property
    def tag(self) -> str:
        """Returns the tag of the partition in which the thread and all its runs are."""
        return tag_of(crc32(self.digest.encode()))


@dataclass(frozen=True, slots=True)
class ThreadRequest:
    """The part of a request that places the new run in a thread.

    Attributes:
        parent_run_id: the turn that the run continues, ROOT to begin a branch, or None for the current branch.
        messages: the run's own messages. The run's record does not repeat them.
    """

    identity: ThreadIdentity
    messages: Messages
    on_active: OnActive = OnActive.REJECT
    parent_run_id: str | None = None

    def encode_messages(self) -> bytes:
        """Returns the messages as Redis holds them."""
        return orjson.dumps(self.messages)


@dataclass(frozen=True, slots=True)
class ThreadTurn:
    """A run that became active in its thread.

    Attributes:
        parent_run_id: empty at the root.
        seq: its place among all turns of the thread, by activation.
        activated_at: Unix ms by Redis's clock.
        status: the run's final status, `lost` if the run disappeared, or empty while it is active.
        code: the error's code of a failed run.
        last_id: the id of the run's terminal event.
        size: the bytes of its messages.
        messages_in: its own messages; empty unless they were read.
        messages_out: those of its result; empty until its end.
    """

    run_id: str
    parent_run_id: str
    seq: int
    activated_at: int
    status: str = ""
    code: str = ""
    last_id: str = ""
    size: int = 0
    is_deleted: bool = False
    messages_in: Messages = ()
    messages_out: Messages = ()


@dataclass(frozen=True, slots=True)
class WaitingRun:
    """A run that waits for its turn.

    Attributes:
        position: its place among the waiting runs, from 1 on.
        on_active: ENQUEUE, INTERRUPT or STEER.
        steers: for STEER, the run that its messages may join.
    """

    run_id: str
    position: int
    on_active: OnActive
    steers: str = ""
    messages_in: Messages = ()


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread as it was read.

    Attributes:
        life_id: differs between a thread and one of the same id that was created after its deletion.
        active_run_id: empty if no run is active.
        head_run_id: the end of the current branch; empty before the first turn.
        turns: by activation.
        waiting: in the order in which they get their turn.
        merged: the run that each steering run's messages joined, by the steering run's id.
    """

    identity: ThreadIdentity
    life_id: str
    created_at: int
    updated_at: int
    title: str
    metadata: dict[str, str]
    active_run_id: str
    head_run_id: str
    size: int
    is_deleting: bool
    turns: tuple[ThreadTurn, ...] = ()
    waiting: tuple[WaitingRun, ...] = ()
    merged: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ThreadPath:
    """The turns from the root to a run's parent, and the run's own messages.

    Attributes:
        turns: deleted turns have no messages.
        cut_turns: turns at the root's end that were not read, because of the byte budget or since they are gone.
    """

    turns: tuple[ThreadTurn, ...]
    messages_in: Messages
    cut_turns: int = 0
