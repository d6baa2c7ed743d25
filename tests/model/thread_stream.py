"""A model of a thread's stream, explored exhaustively: how a client passes from the log of one turn to that of the next.

A thread has three turns of two events each; the second one ends its run. A run's channel and the thread's channel may lose
messages, logs of turns that ended may expire, and the client may reconnect once with its last id. The client is the one of
`gateway/streaming/thread_relay.py`: it reads the thread, subscribes to a turn's run, reads the log, and takes live events.

The walk visits every interleaving, and checks in every state that the client has seen a beginning of the whole sequence of
events, each once. A state in which the client can do nothing more must have all of them, and as long as no message was lost,
without the check of quiet streams: a client must not wait for a ping to learn of an event.

`StreamRules` can disable one rule; the walk then finds the violation that the rule prevents.
"""

from collections.abc import Iterator
from typing import NamedTuple

TURNS = 3
LAST = 2  # the event that ends a run

Event = tuple[int, int]  # turn, sequence


class StreamRules(NamedTuple):
    """The rules of the hand-over; each can be disabled."""

    end_begins_next: bool = True  # the script that ends a run also makes the next one a turn
    quiet_streams_look: bool = True  # a quiet stream reads the thread although no message came
    subscribe_first: bool = True  # to the run's channel, before its log is read
    events_follow: bool = True  # a live event is sent only if the client has the one before it
    snapshot_has_end_id: bool = True  # a snapshot's id is that of the turn's last event
    gap_replaces_turn: bool = True  # a cursor within an expired log gets a gap, and the snapshot replaces the turn


ALL_STREAM_RULES = StreamRules()


class Budget(NamedTuple):
    """How often each fault may still happen."""

    lost_messages: int = 2
    reconnects: int = 1


class Viewer(NamedTuple):
    """The client and the relay's record of it.

    Attributes:
        place: the turn that is followed, and the last event of it that was sent.
        seen: the events that the client has. A snapshot stands for all events of its turn.
        joined: the turn whose run's channel is subscribed; -1 for none.
        is_live: the log has been read to its end.
        queue: live events on their way.
        wakes: messages of the thread's channel on their way.
    """

    place: Event = (0, 0)
    seen: tuple[Event, ...] = ()
    joined: int = -1
    is_live: bool = False
    queue: tuple[Event, ...] = ()
    wakes: int = 0

    def at(self, place: Event) -> "Viewer":
        """Returns the viewer as it is at a place that no channel is subscribed for yet."""
        return self._replace(place=place, joined=-1, is_live=False, queue=())


class State(NamedTuple):
    """The thread in Redis, and one viewer of its stream.

    Attributes:
        log: by turn, how many events its log has.
        expired: turns whose log has expired.
        waiting: how many runs wait for their turn.
        posts: how many runs are still to be created.
    """

    log: tuple[int, ...] = ()
    expired: frozenset[int] = frozenset()
    waiting: int = 0
    posts: int = TURNS
    viewer: Viewer = Viewer()
    budget: Budget = Budget()

    @property
    def is_idle(self) -> bool:
        """True if no run is active."""
        return not self.log or self.log[-1] == LAST

    @property
    def events(self) -> tuple[Event, ...]:
        """All events of the thread, in order."""
        return tuple((turn, sequence) for turn, count in enumerate(self.log) for sequence in range(1, count + 1))


def begin_turn(state: State, *, is_told: bool = True) -> State:
    """Makes a run the active one, and announces it."""
    viewer = state.viewer._replace(wakes=state.viewer.wakes + is_told)
    return state._replace(log=(*state.log, 0), viewer=viewer)


def steps(state: State, rules: StreamRules) -> Iterator[State]:
    """Yields the states after each possible next step of the system."""
    yield from thread_steps(state, rules)
    yield from fault_steps(state)
    yield from viewer_steps(state, rules)


def thread_steps(state: State, rules: StreamRules) -> Iterator[State]:
    """Yields what happens to the thread: a run is created, one appends an event, the log of an ended one expires."""
    if state.posts:
        created = state._replace(posts=state.posts - 1)
        is_free = state.is_idle and not state.waiting
        yield begin_turn(created) if is_free else created._replace(waiting=state.waiting + 1)
    if state.is_idle:
        if state.waiting and not rules.end_begins_next:  # by a later script that tells nobody
            yield begin_turn(state._replace(waiting=state.waiting - 1), is_told=False)
    else:
        yield append(state, rules)
    for turn, count in enumerate(state.log[:-1]):
        if count == LAST and turn not in state.expired:
            yield state._replace(expired=state.expired | {turn})


def append(state: State, rules: StreamRules) -> State:
    """Appends the active run's next event, publishes it, and begins the next turn if the run ends with it."""
    event = (len(state.log) - 1, state.log[-1] + 1)
    viewer = state.viewer
    if viewer.joined == event[0]:
        viewer = viewer._replace(queue=(*viewer.queue, event))
    appended = state._replace(log=(*state.log[:-1], event[1]), viewer=viewer)
    if event[1] == LAST and state.waiting and rules.end_begins_next:
        return begin_turn(appended._replace(waiting=state.waiting - 1))
    return appended


def fault_steps(state: State) -> Iterator[State]:
    """Yields the faults: a message is lost, the client reconnects with the id of its last event."""
    viewer, budget = state.viewer, state.budget
    if budget.reconnects and viewer.seen:
        again = viewer.at(viewer.seen[-1])._replace(wakes=0)
        yield state._replace(viewer=again, budget=budget._replace(reconnects=budget.reconnects - 1))
    if budget.lost_messages:
        lossy = state._replace(budget=budget._replace(lost_messages=budget.lost_messages - 1))
        if viewer.queue:
            yield lossy._replace(viewer=viewer._replace(queue=viewer.queue[1:]))
        if viewer.wakes:
            yield lossy._replace(viewer=viewer._replace(wakes=viewer.wakes - 1))


def viewer_steps(state: State, rules: StreamRules) -> Iterator[State]:
    """Yields what the relay does for its client. If there is nothing, the client waits."""
    viewer = state.viewer
    turn, sequence = viewer.place
    if turn >= len(state.log):
        return  # no turn yet
    if sequence == LAST:
        if turn + 1 < len(state.log) and (viewer.wakes or rules.quiet_streams_look):
            following = viewer.at((turn + 1, 0))._replace(wakes=max(0, viewer.wakes - 1))
            yield state._replace(viewer=following)
    elif not viewer.is_live:
        if viewer.joined != turn and rules.subscribe_first:
            yield state._replace(viewer=viewer._replace(joined=turn, queue=()))
        else:
            yield state._replace(viewer=read_log(state, rules)._replace(is_live=True))
    elif viewer.joined != turn:
        yield state._replace(viewer=viewer._replace(joined=turn, queue=()))
    elif viewer.queue:
        yield state._replace(viewer=take_live(viewer, rules))
    elif state.log[turn] > sequence and rules.quiet_streams_look:
        yield state._replace(viewer=viewer._replace(is_live=False))


def read_log(state: State, rules: StreamRules) -> Viewer:
    """Returns the viewer after it has read the log of its turn, or got a snapshot of it."""
    viewer = state.viewer
    turn, sequence = viewer.place
    if turn not in state.expired:
        rest = tuple((turn, number) for number in range(sequence + 1, state.log[turn] + 1))
        return viewer._replace(place=(turn, state.log[turn]), seen=viewer.seen + rest)
    whole = tuple((turn, number) for number in range(1, LAST + 1))
    if sequence and not rules.gap_replaces_turn:
        return viewer._replace(place=(turn, LAST))
    others = tuple(event for event in viewer.seen if event[0] != turn)
    return viewer._replace(place=(turn, LAST if rules.snapshot_has_end_id else 0), seen=others + whole)


def take_live(viewer: Viewer, rules: StreamRules) -> Viewer:
    """Returns the viewer after the next live event: sent, dropped as a repetition, or a reason to read the log."""
    event, rest = viewer.queue[0], viewer.queue[1:]
    turn, sequence = viewer.place
    if event[0] != turn or event[1] <= sequence:
        return viewer._replace(queue=rest)
    if event[1] == sequence + 1 or not rules.events_follow:
        return viewer._replace(queue=rest, place=event, seen=(*viewer.seen, event))
    return viewer._replace(queue=rest, is_live=False)


def violation_of(state: State, rules: StreamRules) -> str:
    """Returns what is wrong in a state; empty if nothing is."""
    seen, events = state.viewer.seen, state.events
    if seen != events[: len(seen)]:
        return f"the client has {seen} of {events}"
    if seen != events and not any(viewer_steps(state, rules)):
        return f"the client waits with {seen} of {events}"
    no_ping = rules._replace(quiet_streams_look=False)
    if seen != events and state.budget == Budget() and not any(viewer_steps(state, no_ping)):
        return f"the client waits for a ping with {seen} of {events}"
    return ""


def explore(rules: StreamRules = ALL_STREAM_RULES) -> tuple[int, str]:
    """Visits every reachable state; returns their number, and the first violation or an empty text."""
    first = State()
    visited, pending = {first}, [first]
    while pending:
        state = pending.pop()
        if violation := violation_of(state, rules):
            return len(visited), violation
        for following in steps(state, rules):
            if following not in visited:
                visited.add(following)
                pending.append(following)
    return len(visited), ""
