"""Response models of threads. `/openapi.json` serves their docstrings and descriptions."""

from typing import Any, Self

import orjson
from pydantic import Field

from stagebus.gateway.api.schemas.answers import Answer, Timestamp, timestamp
from stagebus.gateway.api.urls import Urls
from stagebus.gateway.auth.tickets import SignedTicket
from stagebus.shared.domain.cursor import parse_id
from stagebus.shared.domain.thread_cursor import ThreadCursor
from stagebus.shared.domain.threads import OnActive, Thread, ThreadTurn, WaitingRun
from stagebus.shared.store.thread_branch import BranchPage, TurnMessages, heads_of
from stagebus.shared.store.thread_list import ListedThread

Json = dict[str, Any]
ACTIVE = "active"
DELETED = "deleted"


class ThreadLinks(Answer):
    """The URLs of a thread."""

    self: str = Field(description="the thread")
    events: str = Field(description="the thread's event stream")


class ThreadSummary(Answer):
    """A thread in a list."""

    id: str = Field(description="the thread's id, as the client chose it")
    user: str | None = Field(description="the person within the tenant whose thread it is; null: nobody in particular")
    title: str | None = Field(description="set by PATCH")
    metadata: dict[str, str] = Field(description="set by PATCH: the client's own key-value pairs")
    created_at: Timestamp = Field(description="when its first run was created")
    updated_at: Timestamp = Field(description="when a run of it was last created, began or ended")
    active_run_id: str | None = Field(description="the run whose turn it is")
    head_run_id: str | None = Field(description="the last turn of the current branch, which a new run follows")
    run_count: int = Field(description="the number of its turns and waiting runs")
    size_bytes: int = Field(description="the bytes of its messages as JSON")
    links: ThreadLinks = Field(description="the thread's URLs")

    @classmethod
    def of(cls, thread: ListedThread, urls: Urls, caller: str) -> Self:
        """Returns the summary of a thread. Args: `caller`: the user who asks, or empty."""
        named = _named(thread.thread_id, thread.user, urls, caller)
        return cls(**named, **_summary_fields(thread), run_count=thread.run_count)


class ThreadList(Answer):
    """A page of threads, the last active first."""

    threads: list[ThreadSummary] = Field(description="the threads of this page")
    next: str | None = Field(
        description="pass it as `before` to get the next page, which may exist even if this one is short; "
        "null on the last page"
    )


class TurnSummary(Answer):
    """A turn: a run that became active in its thread."""

    run_id: str = Field(description="the turn's run")
    parent_run_id: str | None = Field(description="the turn that it follows; null at the root")
    seq: int = Field(description="its place among all turns of the thread, from 1 on")
    status: str = Field(
        description="`active`, `succeeded`, `failed`, `cancelled`, `lost` if Redis lost the run, or `deleted`"
    )
    error_code: str | None = Field(description="the code of a failed run's error")
    began_at: Timestamp = Field(description="when it became active")
    last_event_id: str | None = Field(
        description="the cursor in the thread's stream after its last event; null while active"
    )

    @classmethod
    def of(cls, turn: ThreadTurn) -> Self:
        """Returns the view of a turn."""
        return cls(**_turn_fields(turn))


class BranchTurn(TurnSummary):
    """A turn of a branch, with its messages."""

    messages: list[Json] = Field(description="the new messages of its request")
    result: list[Json] = Field(
        description="its result: the model's calls with their results, and its answer, which has `partial` if the run "
        "was stopped; empty while the run is active"
    )

    @classmethod
    def without_messages(cls, read: TurnMessages) -> Self:
        """Returns the view of a turn whose messages `encode_thread` adds."""
        return cls(**_turn_fields(read.turn), messages=[], result=[])


class BranchView(Answer):
    """Turns of one branch, the oldest first."""

    head_run_id: str | None = Field(description="the branch's last turn; null if the thread has no turn yet")
    turns: list[BranchTurn] = Field(description="the turns of this page")
    before: str | None = Field(description="pass it as `before` to get the turns before these; null at the root")

    @classmethod
    def of(cls, page: BranchPage) -> Self:
        """Returns the view of a page without the messages."""
        turns = [BranchTurn.without_messages(read) for read in page.turns]
        return cls(head_run_id=page.head_run_id or None, turns=turns, before=page.before)


class WaitingView(Answer):
    """A run that waits for its turn."""

    run_id: str = Field(description="the waiting run")
    position: int = Field(description="its place among the waiting runs; 1 is next")
    on_active: OnActive = Field(description="why it waits: `enqueue`, `interrupt` or `steer`")
    steers: str | None = Field(description="the run that its messages may join")

    @classmethod
    def of(cls, waiting: WaitingRun) -> Self:
        """Returns the view of a waiting run."""
        return cls(
            run_id=waiting.run_id,
            position=waiting.position,
            on_active=waiting.on_active,
            steers=waiting.steers or None,
        )


class ThreadView(ThreadSummary):
    """A thread with its tree of turns, the runs that wait, and the messages of one branch."""

    turns: list[TurnSummary] = Field(description="all turns in the order in which they became active")
    branches: list[str] = Field(description="the last turn of each branch, by its run; the newest one last")
    waiting: list[WaitingView] = Field(description="the runs that wait for their turn, the next one first")
    branch: BranchView = Field(description="the messages of the current branch, or of the requested one, in pages")

    @classmethod
    def of_thread(cls, thread: Thread, page: BranchPage, urls: Urls, caller: str) -> Self:
        """Returns the view of a thread, for `encode_thread`. Args: `caller`: the user who asks, or empty."""
        return cls(
            **_named(thread.identity.thread_id, thread.identity.user, urls, caller),
            **_summary_fields(thread),
            run_count=len(thread.turns) + len(thread.waiting),
            turns=[TurnSummary.of(turn) for turn in thread.turns],
            branches=heads_of(thread),
            waiting=[WaitingView.of(run) for run in thread.waiting],
            branch=BranchView.of(page),
        )


def encode_thread(view: ThreadView, page: BranchPage) -> bytes:
    """Encodes a thread with the messages of the page, which stay as they are stored.

    As models, 70,000 short messages of a page hold the event loop for 100 ms.
    """
    fields = view.model_dump(mode="json")
    for turn, read in zip(fields["branch"]["turns"], page.turns, strict=True):
        turn |= {"messages": orjson.Fragment(read.messages), "result": orjson.Fragment(read.result)}
    return orjson.dumps(fields)


class ThreadTicketLinks(Answer):
    """The URL that a ticket for a thread opens."""

    events: str = Field(description="the thread's event stream, for an `EventSource`")


class ThreadTicket(Answer):
    """A ticket for a thread and its runs."""

    id: str = Field(description="the ticket's id in logs and for revocation; not a secret")
    ticket: str = Field(
        description="the secret: the query parameter `ticket` of the URLs of the thread, of its stream and of its runs"
    )
    expires_at: Timestamp = Field(description="the ticket is invalid from this time on")
    links: ThreadTicketLinks = Field(description="the URL that the ticket opens")

    @classmethod
    def of(cls, ticket: SignedTicket, events_url: str) -> Self:
        """Returns the view of a ticket. Args: `events_url`: that of the thread's event stream."""
        separator = "&" if "?" in events_url else "?"
        links = ThreadTicketLinks(events=f"{events_url}{separator}ticket={ticket.text}")
        expires_at = timestamp(round(ticket.expires_at) * 1000)
        return cls(id=ticket.ticket_id, ticket=ticket.text, expires_at=expires_at, links=links)


def _named(thread_id: str, user: str, urls: Urls, caller: str) -> Json:
    """Returns a thread's id, user and URLs. These name the user if it is not the caller."""
    named = "" if user == caller else user
    links = ThreadLinks(self=urls.thread(thread_id, named), events=urls.thread_events(thread_id, named))
    return {"id": thread_id, "user": user or None, "links": links}


def _summary_fields(thread: ListedThread | Thread) -> Json:
    return {
        "title": thread.title or None,
        "metadata": thread.metadata,
        "created_at": timestamp(thread.created_at),
        "updated_at": timestamp(thread.updated_at),
        "active_run_id": thread.active_run_id or None,
        "head_run_id": thread.head_run_id or None,
        "size_bytes": thread.size,
    }


def _turn_fields(turn: ThreadTurn) -> Json:
    last_id = str(ThreadCursor(turn.run_id, parse_id(turn.last_id))) if turn.last_id else None
    return {
        "run_id": turn.run_id,
        "parent_run_id": turn.parent_run_id or None,
        "seq": turn.seq,
        "status": DELETED if turn.is_deleted else turn.status or ACTIVE,
        "error_code": turn.code or None,
        "began_at": timestamp(turn.activated_at),
        "last_event_id": last_id,
    }
