"""A model of a call that waits for a result from outside, explored exhaustively.

Two workers claim a run whose model calls a tool that may not run twice and may defer its result. Its own return value,
two results from outside and the clock compete; another call of the run gets a decision. Replies to a park are lost, live
messages never arrive, workers die at any moment, and Redis may lose its tail. The walk visits every interleaving, and
checks in every state that

- the model got the first result of this very call that Redis has,
- a parked run whose call has a result is due,
- a tool that may not run twice has started once, as long as Redis lost nothing,
- others are told once an attempt that the run waits.

`Rules` can disable one rule of the protocol; the walk then finds the violation that the rule prevents.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from stagebus.shared.runtime.gc_tuning import gc_paused


class Rules(NamedTuple):
    """The rules of the protocol; each can be disabled."""

    first_result_counts: bool = True  # deliver keeps the result that stands
    own_value_is_delivered: bool = True  # the tool's return value takes the same way
    call_is_stored_first: bool = True  # the tool starts once its call is in the log
    park_compares_news: bool = True  # a change that the worker has not read makes the run due
    news_never_reused: bool = True  # its number is at least the time, which a lost tail does not set back
    result_names_the_answer: bool = True  # results are kept by the answer that has the call, not by the call's id alone
    park_stands: bool = True  # a repeated park changes nothing


class Write(NamedTuple):
    """One write to Redis; a lost tail removes the last ones.

    Attributes:
        number: of the attempt that made it, or of the change.
        ref: the attempt whose answer has the call.
    """

    kind: Literal["claim", "answer", "call", "deferred", "result", "change", "park", "told"]
    number: int
    ref: int = 0
    value: str = ""
    is_due: bool = False


class Worker(NamedTuple):
    """A worker that holds a claim, or believes that it does.

    Attributes:
        found_call: the call was in the log at the claim, so its tool may have started.
        seen: the number of the last change that it has read.
    """

    attempt: int
    found_call: bool
    has_started: bool = False
    own: str = ""  # the value that its tool returned
    is_waiting: bool = False
    seen: int = -1
    is_parking: bool = False  # it sent a park whose reply was lost


class Budget(NamedTuple):
    """How often each may happen."""

    claims: int
    tails: int
    posts: int
    decisions: int = 1


class State(NamedTuple):
    """A state of the whole model."""

    writes: tuple[Write, ...]
    workers: tuple[Worker, ...]
    budget: Budget
    clock: int = 0
    tokens: frozenset[int] = frozenset()  # the calls that somebody outside may answer, by their `ref`
    starts: int = 0

    def last(self, *kinds: str) -> Write | None:
        return next((write for write in reversed(self.writes) if write.kind in kinds), None)

    @property
    def attempt(self) -> int:
        claim = self.last("claim")
        return claim.number if claim else 0

    @property
    def ref(self) -> int:
        answer = self.last("answer")
        return answer.number if answer else 0

    @property
    def news(self) -> int:
        change = self.last("change")
        return change.number if change else 0

    def has(self, kind: str) -> bool:
        return any(write.kind == kind for write in self.writes)

    def stored(self, ref: int, rules: Rules) -> Write | None:
        """Returns the result that a worker finds for the call."""
        found = [
            w
            for w in self.writes
            if w.kind == "change" and w.value and (w.ref == ref or not rules.result_names_the_answer)
        ]
        return found[0] if found and rules.first_result_counts else found[-1] if found else None

    @property
    def is_parked(self) -> bool:
        last = self.last("claim", "park")
        return last is not None and last.kind == "park"

    @property
    def is_due(self) -> bool:
        """Returns whether the queue gives the run to a worker; a lease may expire at any moment."""
        if not self.is_parked:
            return True
        since = self.writes[max(at for at, write in enumerate(self.writes) if write.kind == "park") :]
        return since[0].is_due or any(write.kind == "change" for write in since)


def _write(state: State, *writes: Write) -> State:
    return state._replace(writes=(*state.writes, *writes))


def _change(state: State, rules: Rules, ref: int, value: str) -> State:
    """Returns the state after `decide` (without a value) or `deliver`."""
    if value and rules.first_result_counts and state.stored(ref, rules) is not None:
        return state
    clock = state.clock + 1
    number = clock if rules.news_never_reused else state.news + 1
    return _write(state._replace(clock=clock), Write("change", number, ref, value))


def _put(state: State, old: Worker, new: Worker | None) -> State:
    workers = tuple(worker for worker in state.workers if worker != old)
    return state._replace(workers=tuple(sorted((*workers, *([new] if new else [])))))


def steps(state: State, rules: Rules) -> Iterator[State]:
    """Yields every possible next state."""
    budget = state.budget
    if budget.claims and state.is_due and not state.has("result"):
        clock = state.clock + 1
        worker = Worker(clock, state.has("call"))
        spent = state._replace(clock=clock, budget=budget._replace(claims=budget.claims - 1))
        claimed = _write(spent, Write("claim", clock))
        yield claimed._replace(workers=tuple(sorted((*state.workers[-1:], worker))))
    for worker in state.workers:
        yield from _worker_steps(state, worker, rules)
    if budget.posts:
        for ref in state.tokens:
            if any(write.kind == "answer" and write.number == ref for write in state.writes):
                spent = state._replace(budget=budget._replace(posts=budget.posts - 1))
                yield _change(spent, rules, ref, f"post {budget.posts}")
    if budget.decisions:
        yield _change(state._replace(budget=budget._replace(decisions=budget.decisions - 1)), rules, 0, "")
    if budget.tails:
        for length in range(1, len(state.writes)):
            yield state._replace(writes=state.writes[:length], budget=budget._replace(tails=budget.tails - 1))


def _worker_steps(state: State, worker: Worker, rules: Rules) -> Iterator[State]:
    is_mine = state.attempt == worker.attempt and not state.has("result")
    if worker.is_parking:
        yield _parked(state, worker, rules)
        return
    if not is_mine and not worker.own:
        yield _put(state, worker, None)
        return
    if is_mine and not state.has("answer"):
        yield _write(state, Write("answer", worker.attempt))
        if state.ref or worker.has_started or worker.is_waiting or worker.own:
            yield _put(state, worker, None)  # its log lost its tail: it claims again
        return
    if is_mine and not state.has("call"):
        is_behind = worker.has_started or worker.is_waiting
        yield _put(state, worker, None) if is_behind else _write(state, Write("call", worker.attempt))
        if rules.call_is_stored_first:
            return
    yield from _call_steps(state, worker, rules, is_mine=is_mine)


def _call_steps(state: State, worker: Worker, rules: Rules, *, is_mine: bool) -> Iterator[State]:
    """Yields the steps of a worker whose call is in the log."""
    if not worker.has_started and not worker.is_waiting and is_mine:
        if worker.found_call:  # the tool may not run twice
            yield _write(_put(state, worker, worker._replace(is_waiting=True)), Write("deferred", worker.attempt))
        else:
            started = state._replace(tokens=state.tokens | {state.ref}, starts=state.starts + 1)
            yield _put(started, worker, worker._replace(has_started=True))
        return
    if worker.has_started and not worker.is_waiting and not worker.own:
        yield _put(state, worker, worker._replace(own="own"))
        yield _write(_put(state, worker, worker._replace(is_waiting=True)), Write("deferred", worker.attempt))
    elif worker.own:
        yield from _settled(state, worker, rules, is_mine=is_mine)
    else:
        yield from _waiting_steps(state, worker, rules)


def _settled(state: State, worker: Worker, rules: Rules, *, is_mine: bool) -> Iterator[State]:
    """Yields the end of a call whose tool returned a value; its worker may be fenced by now."""
    delivered = _change(state, rules, state.ref, worker.own) if rules.own_value_is_delivered else state
    done = _put(delivered, worker, None)
    if not is_mine:
        yield done
        return
    first = delivered.stored(state.ref, rules) if rules.own_value_is_delivered else None
    yield _write(done, Write("result", worker.attempt, state.ref, first.value if first else worker.own))


def _waiting_steps(state: State, worker: Worker, rules: Rules) -> Iterator[State]:
    found = state.stored(state.ref, rules)
    if found is not None:
        yield _write(_put(state, worker, None), Write("result", worker.attempt, state.ref, found.value))
    elif worker.seen != state.news:
        yield _put(state, worker, worker._replace(seen=state.news))
    if worker.seen >= 0:
        yield _parked(state, worker, rules)
        expired = _change(state, rules, state.ref, "expired")
        first = expired.stored(state.ref, rules)
        assert first is not None
        yield _write(_put(expired, worker, None), Write("result", worker.attempt, state.ref, first.value))


def _parked(state: State, worker: Worker, rules: Rules) -> State:
    """Returns the state after a park, whose reply is lost the first time."""
    again = None if worker.is_parking else worker._replace(is_parking=True)
    if state.attempt != worker.attempt or state.has("result"):
        return _put(state, worker, None)
    if state.is_parked and rules.park_stands:
        return _put(state, worker, again)
    is_due = rules.park_compares_news and state.news != worker.seen
    park, told = Write("park", worker.attempt, is_due=is_due), Write("told", worker.attempt)
    return _write(_put(state, worker, again), park, *([] if is_due else [told]))


def violation(state: State, rules: Rules, *, is_whole: bool) -> str | None:
    """Returns the violated invariant of this state, or None; `is_whole`: Redis loses nothing in this walk."""
    result = state.last("result")
    if result is not None:
        mine = [write for write in state.writes if write.kind == "change" and write.value and write.ref == result.ref]
        if not mine or mine[0].value != result.value:
            return f"the model got {result}, and Redis has {mine}"
    elif state.is_parked and not state.is_due and state.stored(state.ref, rules) is not None:
        return f"the run has a result and is stranded: {state.writes}"
    if is_whole and state.starts > 1:
        return "the tool started twice"
    told = [write.number for write in state.writes if write.kind == "told"]
    if len(told) > len(set(told)):
        return "others were told twice that the run waits"
    return None


class Exploration(NamedTuple):
    """The number of states of a walk and the first violation."""

    states: int
    violation: str | None


def explore(budget: Budget, rules: Rules = Rules(), *, states_max: int = 10**6) -> Exploration:  # noqa: B008
    """Walks through every state; stops at the first violation."""
    with gc_paused():
        frontier = [State((), (), budget)]
        seen = set(frontier)
        while frontier:
            state = frontier.pop()
            for following in steps(state, rules):
                if following in seen:
                    continue
                seen.add(following)
                wrong = violation(following, rules, is_whole=budget.tails == 0)
                if wrong is not None:
                    return Exploration(len(seen), wrong)
                frontier.append(following)
                if len(seen) > states_max:
                    raise RuntimeError(f"more than {states_max} states")
        return Exploration(len(seen), None)


def main() -> None:
    """Walks further than the test suite does; takes a minute."""
    for budget in (Budget(3, 0, 2), Budget(3, 1, 1)):
        walk = explore(budget, states_max=10**7)
        print(f"{budget}: {walk.states} states, {walk.violation or 'clean'}")


if __name__ == "__main__":
    main()
