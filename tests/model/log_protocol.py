"""A model of the log protocol, explored exhaustively: the specification of the protocol in code.

The model has two workers, a few claims, a Redis that may lose its tail, replies and live messages that may be lost, and
a client of the merged stream or of a stage. It describes the scripts, the producer and the subscription in a few lines
each. The walk visits every interleaving, and checks in every state that

- no id was seen with two different events,
- the log has consecutive sequences, and nothing after a terminal event,
- a client that compares its position with the end of the log, and reads if they differ, has exactly the log: no event
  is missing, doubled or foreign.

`Rules` can disable one rule of the protocol; the walk then finds the violation that the rule prevents.
"""

from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from stagebus.shared.runtime.gc_tuning import gc_paused

Id = tuple[int, int]  # attempt, sequence
START: Id = (0, 0)

LENGTH = 4  # the last event is terminal
STAGE_TWO = (
    3  # the first sequence of the second stage; the producer keeps the first stage's events until it is complete
)
BATCH_MAX = 2


class Rules(NamedTuple):
    """The rules of the protocol; each can be disabled."""

    attempts_never_reused: bool = True
    id_before_message: bool = True
    cursor_must_stand: bool = True
    claim_needs_lease: bool = True


ALL_RULES = Rules()


class Budget(NamedTuple):
    """How often each fault may happen."""

    claims: int
    tails: int
    replies: int
    messages: int
    parks: int = 0  # if not 0, the model includes the queue: leases, parked runs and decisions


class Entry(NamedTuple):
    """An event in the log; `author` is the claim that created its content."""

    id: Id
    author: int


class Message(NamedTuple):
    """A batch on the live channel."""

    before: Id
    entries: tuple[Entry, ...]


class Worker(NamedTuple):
    """A worker that holds a claim, or believes that it does."""

    attempt: int
    author: int
    base: Id  # the id before the kept events
    kept: int  # how many events it keeps
    stored: int  # how many of them it knows to be in the log

    def id_at(self, count: int) -> Id:
        return (self.attempt, self.base[1] + count) if count else self.base


Workers = tuple[Worker | None, Worker | None]


class Client(NamedTuple):
    """A client and its subscription: the events seen, the position, and the messages on their way."""

    position: Id
    is_live: bool
    seen: tuple[Entry, ...]
    queue: tuple[Message, ...]
    first_sequence: int  # 1: the merged stream; else the stage's


class Score(Enum):
    """When the queue gives the run to a worker."""

    DUE = "due"  # now
    HELD = "held"  # when the lease of its holder expires
    LATER = "later"  # when its approvals expire, which never happens in the model


class Queued(NamedTuple):
    """The write of an acquire, a park or a decision: the run's score, and the token in its lease."""

    score: Score
    token: int = 0


Write = int | Entry | Queued


class Redis(NamedTuple):
    """All writes in order: a claim's attempt, an entry, or the run's place in the queue.

    Losing the tail cuts it short.
    """

    writes: tuple[Write, ...]

    @property
    def attempt(self) -> int:
        return next((write for write in reversed(self.writes) if isinstance(write, int)), 0)

    @property
    def log(self) -> tuple[Entry, ...]:
        return tuple([write for write in self.writes if isinstance(write, Entry)])

    @property
    def queued(self) -> Queued:
        return next((write for write in reversed(self.writes) if isinstance(write, Queued)), Queued(Score.DUE))

    @property
    def has_worker(self) -> bool:
        """Returns whether the record names a worker: a claim sets the name, a park removes it."""
        for write in reversed(self.writes):
            if isinstance(write, int):
                return True
            if isinstance(write, Queued) and write.score is Score.LATER:
                return False
        return False


class State(NamedTuple):
    """A state of the whole model."""

    redis: Redis
    workers: Workers
    client: Client
    claims_made: int
    budget: Budget
    acquired: int | None = None  # the token of a worker that has not claimed yet, 0: none; None: no queue is modelled


def initial(budget: Budget, first_sequence: int) -> State:
    """Returns the state of a new run, whose log has `0-1`."""
    client = Client(START, is_live=False, seen=(), queue=(), first_sequence=first_sequence)
    acquired = 0 if budget.parks else None
    return State(Redis((Entry((0, 1), 0),)), (None, None), client, 0, budget, acquired)


def last_id(log: tuple[Entry, ...]) -> Id:
    return log[-1].id if log else START


def is_ended(log: tuple[Entry, ...]) -> bool:
    return bool(log) and log[-1].id[1] == LENGTH


# --- transitions ---------------------------------------------------------


def steps(state: State, rules: Rules) -> Iterator[State]:
    """Yields every possible next state."""
    log = state.redis.log
    if state.acquired is not None:
        yield from _queue_steps(state, log)
    for index in range(len(state.workers)):
        yield from _worker_steps(state, log, rules, index)
    for client, spent in _client_steps(state.client, log, rules):
        if spent <= state.budget.messages:
            yield state._replace(client=client, budget=state.budget._replace(messages=state.budget.messages - spent))
    if state.budget.tails:
        budget = state.budget._replace(tails=state.budget.tails - 1)
        for length in range(1, len(state.redis.writes)):
            yield state._replace(redis=Redis(state.redis.writes[:length]), budget=budget)


def _worker_steps(state: State, log: tuple[Entry, ...], rules: Rules, index: int) -> Iterator[State]:
    worker = state.workers[index]
    if state.acquired is None:
        if state.budget.claims and not is_ended(log):
            yield _claimed(_spend_claim(state), log, rules, index)
    elif state.acquired and not is_ended(log) and _may_claim(state, rules):
        yield _claimed(state, log, rules, index)._replace(acquired=0)
    if worker is None:
        return
    if worker.base[1] + worker.kept < LENGTH:
        yield state._replace(workers=_with(state.workers, index, worker._replace(kept=worker.kept + 1)))
    if worker.kept > worker.stored:
        yield from _append_steps(state, log, index, worker)


def _spend_claim(state: State) -> State:
    return state._replace(
        claims_made=state.claims_made + 1, budget=state.budget._replace(claims=state.budget.claims - 1)
    )


def _claimed(state: State, log: tuple[Entry, ...], rules: Rules, index: int) -> State:
    # Redis's clock advances with every claim; a lost tail does not set it back.
    number = state.claims_made if rules.attempts_never_reused else state.redis.attempt + 1
    claimed = Worker(number, state.claims_made, last_id(log), 0, 0)
    return state._replace(redis=Redis((*state.redis.writes, number)), workers=_with(state.workers, index, claimed))


def _may_claim(state: State, rules: Rules) -> bool:
    """Returns whether a worker may claim. A lease can expire at any moment; without the rule, only another worker's
    current lease prevents a claim.
    """
    holder = state.redis.queued.token
    return holder == state.acquired or (not rules.claim_needs_lease and holder == 0)


def _queue_steps(state: State, log: tuple[Entry, ...]) -> Iterator[State]:
    """Yields acquires, parks and decisions. The budget counts an acquire and its claim as one."""
    writes, queued = state.redis.writes, state.redis.queued
    if state.budget.claims and queued.score is not Score.LATER and not is_ended(log):
        acquired = _spend_claim(state)
        token = acquired.claims_made
        yield acquired._replace(redis=Redis((*writes, Queued(Score.HELD, token))), acquired=token)
    if (
        queued.score is Score.LATER and not state.redis.has_worker
    ):  # a decision on a run with a worker is sent to that worker
        yield state._replace(redis=Redis((*writes, Queued(Score.DUE))))
    if not state.budget.parks or is_ended(log):
        return
    for index, worker in enumerate(state.workers):
        is_mine = worker is not None and state.redis.attempt == worker.attempt and queued.token in (0, worker.author)
        if worker is not None and is_mine and worker.kept == worker.stored:
            yield state._replace(
                redis=Redis((*writes, Queued(Score.LATER))),
                workers=_with(state.workers, index, None),
                budget=state.budget._replace(parks=state.budget.parks - 1),
            )


def _append_steps(state: State, log: tuple[Entry, ...], index: int, worker: Worker) -> Iterator[State]:
    if state.redis.attempt != worker.attempt or is_ended(log):
        yield state._replace(workers=_with(state.workers, index, None))
        return
    before = worker.id_at(worker.stored)
    skip = last_id(log)[1] - before[1]
    if last_id(log) != before and (last_id(log)[0] != worker.attempt or skip < 0):
        yield state._replace(workers=_with(state.workers, index, _rewound(worker, last_id(log))))
        return
    for count in range(1, min(BATCH_MAX, worker.kept - worker.stored) + 1):
        first = before[1] + 1
        batch = tuple([Entry((worker.attempt, first + i), worker.author) for i in range(count)])
        redis = Redis((*state.redis.writes, *batch[skip:]))
        client = state.client
        if batch[skip:]:
            client = client._replace(queue=(*client.queue, Message(before, batch)))
        appended = state._replace(redis=redis, client=client)
        yield appended._replace(workers=_with(state.workers, index, _advanced(worker, redis.log)))
        if state.budget.replies:
            yield appended._replace(budget=state.budget._replace(replies=state.budget.replies - 1))


def _advanced(worker: Worker, log: tuple[Entry, ...]) -> Worker:
    stored = last_id(log)[1] - worker.base[1]
    if (
        worker.base[1] < STAGE_TWO - 1 <= worker.base[1] + stored
    ):  # the first stage is complete, so its events are no longer kept
        forgotten = STAGE_TWO - 1 - worker.base[1]
        return worker._replace(base=worker.id_at(forgotten), kept=worker.kept - forgotten, stored=stored - forgotten)
    return worker._replace(stored=stored)


def _rewound(worker: Worker, log_end: Id) -> Worker | None:
    """Returns the worker after it found the log shorter than it knew: it resends from there, or gives up."""
    stored = log_end[1] - worker.base[1]
    if log_end == worker.base or (log_end[0] == worker.attempt and 0 < stored <= worker.kept):
        return worker._replace(stored=stored)
    return None


def _client_steps(client: Client, log: tuple[Entry, ...], rules: Rules) -> Iterator[tuple[Client, int]]:
    if client.queue:
        message, rest = client.queue[0], client.queue[1:]
        yield client._replace(queue=rest), 1  # lost
        if client.is_live:
            yield _delivered(client._replace(queue=rest), message, rules), 0
    if not client.is_live:
        yield read(client, log, rules), 0
    elif client.position != last_id(log):
        yield client._replace(is_live=False), 0
    if client.seen and client.seen[-1].id != client.position:
        # It reconnects with the id of the last event it saw.
        yield client._replace(is_live=False, position=client.seen[-1].id), 0


def _delivered(client: Client, message: Message, rules: Rules) -> Client:
    follows = message.before == client.position
    if not rules.id_before_message:
        follows = message.before[1] == client.position[1]
    if not follows:
        return client._replace(is_live=False)
    shown = tuple([entry for entry in message.entries if entry.id[1] >= client.first_sequence])
    return client._replace(position=message.entries[-1].id, seen=client.seen + shown)


def read(client: Client, log: tuple[Entry, ...], rules: Rules) -> Client:
    """Reads the log after the client's position; a position that is not in the log gives a gap."""
    position, seen = client.position, client.seen
    if rules.cursor_must_stand and position != START and all(entry.id != position for entry in log):
        position, seen = START, ()
    shown = tuple([entry for entry in log if entry.id > position and entry.id[1] >= client.first_sequence])
    return client._replace(position=last_id(log), is_live=True, seen=seen + shown)


def _with(workers: Workers, index: int, worker: Worker | None) -> Workers:
    """Returns the workers with one replaced, sorted: they are interchangeable, which halves the number of states."""
    other = workers[1 - index]
    return (worker, other) if other is None or (worker is not None and worker <= other) else (other, worker)


# --- invariants ----------------------------------------------------------


def violation(state: State, rules: Rules) -> str | None:
    """Returns the violated invariant of this state, or None."""
    log = state.redis.log
    if [entry.id[1] for entry in log] != list(range(1, len(log) + 1)):
        return f"the log has a hole, a double or an event after its end: {log}"
    if any(a.id >= b.id for a, b in pairwise(log)):
        return f"ids do not grow: {log}"
    if state.redis.has_worker and state.redis.queued.score is Score.LATER:
        return f"the run names a worker and is stranded if that worker dies: {state.redis.writes}"
    # After the client compared positions: at a ping of a quiet stream, or when it reads for another reason.
    client = state.client
    settled = read(client, log, rules) if not client.is_live or client.position != last_id(log) else client
    if settled.seen != tuple([entry for entry in log if entry.id[1] >= client.first_sequence]):
        return f"the client has {settled.seen}, the log {log}"
    return None


class Walk(NamedTuple):
    """The number of states of a walk and the first violation."""

    states: int
    violation: str | None


def explore(budget: Budget, rules: Rules = ALL_RULES, *, first_sequence: int = 1, states_max: int = 10**7) -> Walk:
    """Walks through every state; stops at the first violation.

    Clients change nothing for each other, so one at a time is enough: that of the merged
    stream, or with `first_sequence` STAGE_TWO that of the second stage.
    """
    with gc_paused():  # all states are kept and none refers to later ones, so there is no garbage
        return _explore(budget, rules, first_sequence, states_max)


def _explore(budget: Budget, rules: Rules, first_sequence: int, states_max: int) -> Walk:
    frontier = [initial(budget, first_sequence)]
    seen = set(frontier)
    while frontier:
        state = frontier.pop()
        for following in steps(state, rules):
            if following in seen:
                continue
            seen.add(following)
            wrong = violation(following, rules)
            if wrong is not None:
                return Walk(len(seen), wrong)
            frontier.append(following)
            if len(seen) > states_max:
                raise RuntimeError(f"more than {states_max} states")
    return Walk(len(seen), None)


def main() -> None:
    """Walks further than the test suite does; takes a few minutes and about 6 GiB."""
    for budget in (Budget(2, 1, 1, 1), Budget(3, 1, 0, 0), Budget(2, 2, 0, 1)):
        for first_sequence in (1, STAGE_TWO):
            walk = explore(budget, first_sequence=first_sequence)
            print(
                f"{budget}, client of sequence {first_sequence} on: {walk.states} states, {walk.violation or 'clean'}"
            )


if __name__ == "__main__":
    main()
