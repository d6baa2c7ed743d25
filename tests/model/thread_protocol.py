"""A model of the protocol of threads, explored exhaustively: who is active, who waits, and what each run sees.

Three posts to one thread, from as many gateways as one likes, since a post is one script. Two workers that die or sleep,
the sweep, two clients that give the result of a call for which run 0 waits, clients that cancel and delete, replies that
are lost, a lost tail. The walk visits every interleaving and checks in every state that

- at most one run of the thread is at work, and it is the active one,
- a run that was refused does not exist, and a deleted one does not come back,
- no message and no result is in two places, and each turn keeps what its run's log says,
- a run sees exactly the turns before it, each with its outcome,
- runs that wait for their turn get it in the order of their creation;

and where nothing but faults can happen any more, that each accepted run has ended and each accepted result was used.

A run's log is a tuple of words: `a1` is the first answer, `c` the call that waits for its result, `r…` the result, `m1` the
message of run 1 that joined, `a2` the last answer. `Rules` can disable one rule; the walk finds the violation that it prevents.
"""

from collections.abc import Iterator
from typing import NamedTuple

from stagebus.shared.runtime.gc_tuning import gc_paused

NONE = -1
RUNS = range(3)
CALLER = 0  # the run whose call waits for a client's result


class Rules(NamedTuple):
    """The rules of the protocol; each can be disabled."""

    claim_needs_turn: bool = True  # a worker's claim of a run that is not active is refused
    refusal_gives_back: bool = True  # and the same script gives the run back
    claim_needs_lease: bool = True
    end_starts_next: bool = True  # the script of the end makes the next run active
    end_keeps_messages: bool = True  # and stores what the turn came to
    run_before_thread: bool = True  # a post looks for its own run before it looks at the thread
    steering_is_one_step: bool = True  # the message joins and its run ends in one script
    steering_checks_place: bool = True  # only a run that still waits for this very run joins it
    end_frees_steering: bool = True  # a run that nobody took becomes a turn
    parent_fixed_at_turn: bool = True  # a run's parent is fixed when its turn comes, not when it is created
    park_compares_results: bool = True  # a park sees that a result came after the worker's last look
    first_result_stands: bool = True
    result_is_kept: bool = True  # until the run's end, so that another attempt finds it
    deletion_leaves_tombstone: bool = True
    deletion_starts_next: bool = True
    writes_are_fenced: bool = True
    sweep_ends_cancelled: bool = True


ALL_RULES = Rules()


class Budget(NamedTuple):
    """How often each fault may happen."""

    deaths: int = 0  # a worker is gone, or its lease expires while it sleeps
    replies: int = 0  # a script is carried out, and its reply is lost
    tails: int = 0
    strays: int = 0  # a waiting run looks due: its entry in the queue was lost and made again
    cancels: int = 0
    deletes: int = 0


class Run(NamedTuple):
    """A run's record, log and place in the queue."""

    log: tuple[str, ...] = ()
    ended: str = ""
    attempt: int = 0
    has_worker: bool = False
    lease: int = 0  # the number of the acquisition that holds it
    is_due: bool = False
    is_cancelled: bool = False
    is_parked: bool = False
    result: str = ""
    results_seen: int = 0  # how often a result was stored


class Waiting(NamedTuple):
    run: int
    kind: str
    steers: int = NONE


Turns = tuple[int | None, int | None, int | None]
Out = tuple[str, ...] | None


class Thread(NamedTuple):
    active: int = NONE
    head: int = NONE
    waiting: tuple[Waiting, ...] = ()
    turns: tuple[int, ...] = ()
    parents: Turns = (None, None, None)
    outs: tuple[Out, Out, Out] = (None, None, None)


class Redis(NamedTuple):
    runs: tuple[Run | None, Run | None, Run | None] = (None, None, None)
    thread: Thread = Thread()
    tombstones: frozenset[int] = frozenset()
    created: tuple[int, ...] = ()


class Worker(NamedTuple):
    run: int
    acquisition: int
    phase: str = "acquired"
    attempt: int = 0
    known: int = 0  # the length of the log as it knows it
    seen: tuple[str, ...] = ()  # the history that it read
    joining: int = NONE
    looked: tuple[str, int] = ("", 0)


class Ender(NamedTuple):
    run: int
    attempt: int
    known: int


class State(NamedTuple):
    """A state of the whole model."""

    redis: Redis
    posts: tuple[str, str, str]  # new, accepted or refused
    expected: Turns  # the active run that each post expects
    workers: tuple[Worker | None, Worker | None]
    ender: Ender | None
    answers: tuple[str, str]  # of the two clients: new, accepted, refused or lost
    clock: int  # numbers attempts and acquisitions; a lost tail does not set it back
    saved: Redis | None
    lost: frozenset[tuple[str, int]]  # what was accepted and is gone with the tail
    budget: Budget


Step = tuple[Redis, Worker | None]


def initial(budget: Budget, clients: int) -> State:
    answers = ("new", "new" if clients > 1 else "refused")
    return State(Redis(), ("new",) * 3, (None,) * 3, (None, None), None, answers, 0, None, frozenset(), budget)


def changed(redis: Redis, index: int, **fields: object) -> Redis:
    """Returns Redis with some fields of one run changed."""
    run = redis.runs[index]
    assert run is not None
    return redis._replace(runs=put(redis.runs, index, run._replace(**fields)))


def put(values: tuple, index: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:index], value, *values[index + 1 :])


# --- scripts -------------------------------------------------------------


def activated(redis: Redis, index: int, rules: Rules) -> Redis:
    thread = redis.thread
    if rules.parent_fixed_at_turn or thread.parents[index] is None:
        thread = thread._replace(parents=put(thread.parents, index, thread.head))
    thread = thread._replace(active=index, head=index, turns=(*thread.turns, index))
    redis = redis._replace(thread=thread)
    return changed(redis, index, is_due=True) if redis.runs[index] is not None else redis


def next_started(redis: Redis, rules: Rules) -> Redis:
    thread = redis.thread
    for waiting in thread.waiting:
        if waiting.kind != "steer" or rules.end_frees_steering:
            rest = tuple([other for other in thread.waiting if other != waiting])
            return activated(redis._replace(thread=thread._replace(waiting=rest)), waiting.run, rules)
    return redis


def without_waiting(redis: Redis, index: int) -> Redis:
    thread = redis.thread
    return redis._replace(thread=thread._replace(waiting=tuple([w for w in thread.waiting if w.run != index])))


def create(redis: Redis, index: int, kind: str, expected: int | None, rules: Rules) -> tuple[Redis, str, int | None]:
    """Returns Redis, the post's answer, and the active run that it has to expect the next time."""
    active = redis.thread.active
    exists = redis.runs[index] is not None
    is_known = exists or (rules.deletion_leaves_tombstone and index in redis.tombstones)
    is_busy = active != NONE and kind == "reject"
    if is_known and (rules.run_before_thread or not exists or not is_busy):
        return redis, "accepted", None
    if is_busy:
        return redis, "refused", None
    if active != NONE and kind == "interrupt" and expected != active:
        return redis, "new", active
    redis = redis._replace(runs=put(redis.runs, index, Run()), created=(*redis.created, index))
    return (activated(redis, index, rules) if active == NONE else waiting(redis, index, kind, rules)), "accepted", None


def waiting(redis: Redis, index: int, kind: str, rules: Rules) -> Redis:
    thread = redis.thread
    if not rules.parent_fixed_at_turn:
        redis = redis._replace(thread=thread._replace(parents=put(thread.parents, index, thread.head)))
    if kind == "interrupt":
        return interrupted(redis, index)
    place = Waiting(index, kind, thread.active if kind == "steer" else NONE)
    return redis._replace(thread=redis.thread._replace(waiting=(*thread.waiting, place)))


def interrupted(redis: Redis, index: int) -> Redis:
    """Cancels the active run and an older interrupt that waits; runs that steer either of them steer the new one."""
    thread = redis.thread
    older = [waiting.run for waiting in thread.waiting if waiting.kind == "interrupt"]
    for run in [thread.active, *older]:
        if redis.runs[run] is not None:
            redis = changed(redis, run, is_cancelled=True)
    rest = [waiting for waiting in thread.waiting if waiting.run not in older]
    rest = [w._replace(steers=index) if w.steers in [thread.active, *older] else w for w in rest]
    return redis._replace(thread=thread._replace(waiting=(Waiting(index, "interrupt"), *rest)))


def outcome(log: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the messages that a log comes to. A call is never without a result, even a made-up one."""
    said = tuple([word for word in log if word[0] in "arm"])
    return (*said, "r?") if "c" in log and not any(word[0] == "r" for word in said) else said


def ended(redis: Redis, index: int, status: str, rules: Rules) -> Redis:
    run = redis.runs[index]
    assert run is not None
    redis = changed(
        redis,
        index,
        log=(*run.log, f"end {status}"),
        ended=status,
        has_worker=False,
        lease=0,
        is_due=False,
        is_parked=False,
    )
    if rules.end_keeps_messages and redis.thread.active == index:
        redis = redis._replace(thread=redis.thread._replace(outs=put(redis.thread.outs, index, outcome(run.log))))
    return left(redis, index, rules, starts_next=rules.end_starts_next)


def left(redis: Redis, index: int, rules: Rules, *, starts_next: bool) -> Redis:
    if redis.thread.active != index:
        return without_waiting(redis, index)
    redis = redis._replace(thread=redis.thread._replace(active=NONE))
    return next_started(redis, rules) if starts_next else redis


def deleted(redis: Redis, index: int, rules: Rules) -> Redis:
    thread = redis.thread
    if index in thread.turns:
        thread = thread._replace(outs=put(thread.outs, index, ("deleted",)))
    redis = Redis(put(redis.runs, index, None), thread, redis.tombstones | {index}, redis.created)
    if redis.thread.active == index and not rules.deletion_starts_next:
        return redis
    return left(redis, index, rules, starts_next=True)


def history(redis: Redis, index: int) -> tuple[str, ...]:
    """Returns each turn's message and outcome on the path to the run, and the run's own message."""
    path, parent = [], redis.thread.parents[index]
    while parent is not None and parent != NONE:
        path.append(parent)
        parent = redis.thread.parents[parent]
    said: list[str] = []
    for turn in reversed(path):
        if turn not in redis.tombstones:
            out = redis.thread.outs[turn]
            said += [f"m{turn}", *(("missing",) if out is None else out)]
    return (*said, f"m{index}")


# --- transitions ---------------------------------------------------------


def steps(state: State, kinds: tuple[str, ...], rules: Rules) -> Iterator[State]:
    """Yields every possible next state."""
    yield from _client_steps(state, kinds, rules)
    yield from _fault_steps(state)
    yield from _sweep_steps(state, rules)
    for index in range(len(state.workers)):
        yield from _worker_steps(state, rules, index)


def _with_lost_reply(state: State, redis: Redis) -> Iterator[State]:
    if state.budget.replies and redis is not state.redis:
        yield state._replace(redis=redis, budget=state.budget._replace(replies=state.budget.replies - 1))


def _client_steps(state: State, kinds: tuple[str, ...], rules: Rules) -> Iterator[State]:
    redis = state.redis
    for index in RUNS:
        if state.posts[index] == "new":
            after, answer, expected = create(redis, index, kinds[index], state.expected[index], rules)
            yield state._replace(
                redis=after, posts=put(state.posts, index, answer), expected=put(state.expected, index, expected)
            )
            yield from _with_lost_reply(state, after)
    run = redis.runs[CALLER]
    for client in range(len(state.answers)):
        if state.answers[client] == "new" and run is not None and "c" in run.log:
            after, answer = _delivered(redis, run, "xy"[client], rules)
            yield state._replace(redis=after, answers=put(state.answers, client, answer))
            yield from _with_lost_reply(state, after)
    for index, run in enumerate(redis.runs):
        if run is None:
            continue
        if state.budget.cancels and not run.ended and not run.is_cancelled:
            budget = state.budget._replace(cancels=state.budget.cancels - 1)
            yield state._replace(redis=without_waiting(changed(redis, index, is_cancelled=True), index), budget=budget)
        if state.budget.deletes and run.ended != "joined":
            budget = state.budget._replace(deletes=state.budget.deletes - 1)
            yield state._replace(redis=deleted(redis, index, rules), budget=budget)


def _delivered(redis: Redis, run: Run, result: str, rules: Rules) -> tuple[Redis, str]:
    if run.result and rules.first_result_stands:
        return redis, "accepted" if run.result == result else "refused"
    if run.ended:
        return redis, "refused"
    is_due = run.is_due or not run.has_worker  # a worker that holds the run is told
    return changed(redis, CALLER, result=result, results_seen=run.results_seen + 1, is_due=is_due), "accepted"


def _fault_steps(state: State) -> Iterator[State]:
    redis, budget = state.redis, state.budget
    held = {worker.acquisition for worker in state.workers if worker is not None}
    for index, run in enumerate(redis.runs):
        if run is None:
            continue
        if run.lease and run.lease not in held:
            yield state._replace(redis=changed(redis, index, lease=0, is_due=not run.ended))
        if budget.strays and any(waiting.run == index for waiting in redis.thread.waiting):
            yield state._replace(
                redis=changed(redis, index, is_due=True), budget=budget._replace(strays=budget.strays - 1)
            )
    for place, worker in enumerate(state.workers):
        if budget.deaths and worker is not None:
            fewer = budget._replace(deaths=budget.deaths - 1)
            yield state._replace(workers=put(state.workers, place, None), budget=fewer)
            run = redis.runs[worker.run]
            if run is not None and run.lease == worker.acquisition:
                yield state._replace(redis=changed(redis, worker.run, lease=0, is_due=True), budget=fewer)
    if budget.tails:
        yield state._replace(saved=redis) if state.saved is None else _tail_lost(state, state.saved)


def _tail_lost(state: State, saved: Redis) -> State:
    lost = {("post", index) for index in RUNS if state.posts[index] == "refused"}
    lost |= {("run", index) for index in RUNS if saved.runs[index] is None and state.redis.runs[index] is not None}
    before, after = state.redis.runs[CALLER], saved.runs[CALLER]
    answers = state.answers
    if before is not None and before.result and not (after is not None and after.result):
        answers = (
            "lost" if answers[0] == "accepted" else answers[0],
            "lost" if answers[1] == "accepted" else answers[1],
        )
    return state._replace(
        redis=saved, saved=None, lost=frozenset(lost), answers=answers, budget=state.budget._replace(tails=0)
    )


def _sweep_steps(state: State, rules: Rules) -> Iterator[State]:
    """Yields the steps of the process that ends runs which no worker holds, and of the clock by which a call expires."""
    redis, ender = state.redis, state.ender
    run = redis.runs[CALLER]
    if run is not None and run.is_parked and not run.result and not run.ended and "new" not in state.answers:
        yield state._replace(redis=changed(redis, CALLER, result="e", results_seen=run.results_seen + 1, is_due=True))
    if ender is not None:
        is_mine = not _refusal(redis, ender.run, ender.attempt, ender.known, rules)
        yield state._replace(redis=ended(redis, ender.run, "cancelled", rules) if is_mine else redis, ender=None)
        return
    for index, run in enumerate(redis.runs):
        is_left = run is not None and run.is_cancelled and not run.ended and not run.has_worker
        if run is not None and is_left and rules.sweep_ends_cancelled:
            number = state.clock + 1
            claimed = changed(redis, index, attempt=number)
            yield state._replace(redis=claimed, ender=Ender(index, number, len(run.log)), clock=number)


def _refusal(redis: Redis, index: int, attempt: int, known: int, rules: Rules) -> str:
    run = redis.runs[index]
    if run is None or run.ended:
        return "ended"
    if not rules.writes_are_fenced:
        return ""
    if run.attempt != attempt:
        return "fenced"
    return "" if len(run.log) == known else "behind"


def _worker_steps(state: State, rules: Rules, place: int) -> Iterator[State]:
    worker, number = state.workers[place], state.clock + 1
    if worker is None:
        for index, run in enumerate(state.redis.runs):
            if run is not None and run.is_due and not run.lease:
                after = changed(state.redis, index, lease=number, is_due=False)
                yield state._replace(
                    redis=after, workers=put(state.workers, place, Worker(index, number)), clock=number
                )
        return
    for after, then in _work(state, worker, rules):
        clock = max(state.clock, then.attempt if then is not None else 0)
        yield state._replace(redis=after, workers=put(state.workers, place, then), clock=clock)
        if worker.phase in ("between", "joining"):
            yield from _with_lost_reply(state, after)


def _work(state: State, worker: Worker, rules: Rules) -> Iterator[Step]:
    redis = state.redis
    if worker.phase in ("acquired", "refused"):
        yield _claimed(state, worker, rules)
        return
    if worker.phase.startswith("ended"):
        yield _second_steps(redis, worker, rules), None
        return
    run = redis.runs[worker.run]
    refusal = _refusal(redis, worker.run, worker.attempt, worker.known, rules)
    if refusal == "behind" and run is not None:
        yield redis, _after_other_length(run, worker)
    elif refusal or run is None:
        yield redis, None
    elif worker.phase == "left behind":  # the second step of steering
        yield _joined(redis, worker.joining), worker._replace(phase="between", joining=NONE)
    elif worker.phase == "joining":
        yield _join(redis, run, worker, rules)
    elif worker.phase == "looked":
        yield _after_look(redis, run, worker, rules)
    elif worker.phase == "took":
        yield _said(redis, run, worker, f"r{worker.looked[0]}")
    else:
        yield from _next_step(redis, run, worker, rules)


def _claimed(state: State, worker: Worker, rules: Rules) -> Step:
    redis, index = state.redis, worker.run
    run = redis.runs[index]
    is_held = run is not None and (run.lease == worker.acquisition or not (run.lease or rules.claim_needs_lease))
    if run is None or not is_held:
        return redis, None
    if worker.phase == "refused":
        return changed(redis, index, lease=0, is_due=False), None
    if run.ended:
        return redis, None
    if redis.thread.active != index and rules.claim_needs_turn:
        if not rules.refusal_gives_back:
            return redis, worker._replace(phase="refused")
        return changed(redis, index, lease=0, is_due=False), None
    number = state.clock + 1
    claimed = changed(redis, index, attempt=number, has_worker=True, is_parked=False)
    then = worker._replace(phase="between", attempt=number, known=len(run.log), seen=history(redis, index))
    return claimed, then


def _after_other_length(run: Run, worker: Worker) -> Worker | None:
    """Returns the worker after it found the log longer, by its own batch whose reply was lost, or shorter."""
    if len(run.log) > worker.known:
        return worker._replace(known=len(run.log), phase="between", joining=NONE)
    return worker._replace(phase="acquired") if run.lease == worker.acquisition else None


def _said(redis: Redis, run: Run, worker: Worker, *words: str) -> Step:
    log = (*run.log, *words)
    then = worker._replace(known=len(log), phase="between", joining=NONE, looked=("", 0))
    return changed(redis, worker.run, log=log), then


def _next_step(redis: Redis, run: Run, worker: Worker, rules: Rules) -> Iterator[Step]:
    """Yields what a worker does between two stages. It may learn of a cancel, or not yet."""
    if run.is_cancelled:
        yield _ended_by(redis, worker, "cancelled", rules)
    joining = [w.run for w in redis.thread.waiting if w.kind == "steer" and w.steers == worker.run]
    if "a2" in run.log:
        yield _ended_by(redis, worker, "done", rules)
    elif "c" in run.log and not any(word[0] == "r" for word in run.log):
        yield redis, worker._replace(phase="looked", looked=(run.result, run.results_seen))
    elif joining:
        yield redis, worker._replace(phase="joining", joining=joining[0])
    else:
        words = ("a1", "c") if worker.run == CALLER and "a1" not in run.log else ("a2",)
        yield _said(redis, run, worker, *words)


def _ended_by(redis: Redis, worker: Worker, status: str, rules: Rules) -> Step:
    is_whole = rules.end_starts_next and rules.end_keeps_messages
    return ended(redis, worker.run, status, rules), None if is_whole else worker._replace(phase="ended")


def _second_steps(redis: Redis, worker: Worker, rules: Rules) -> Redis:
    """Does in a second script what a disabled rule would have done in the script of the end."""
    run = redis.runs[worker.run]
    if run is not None and not rules.end_keeps_messages:
        redis = redis._replace(thread=redis.thread._replace(outs=put(redis.thread.outs, worker.run, outcome(run.log))))
    is_idle = redis.thread.active == NONE
    return next_started(redis, rules) if is_idle and not rules.end_starts_next else redis


def _join(redis: Redis, run: Run, worker: Worker, rules: Rules) -> Step:
    waits = Waiting(worker.joining, "steer", worker.run) in redis.thread.waiting and not run.is_cancelled
    if rules.steering_checks_place and not waits:
        return redis, worker._replace(phase="between", joining=NONE)
    after, then = _said(redis, run, worker, f"m{worker.joining}")
    if rules.steering_is_one_step:
        return _joined(after, worker.joining), then
    assert then is not None
    return after, then._replace(phase="left behind", joining=worker.joining)


def _joined(redis: Redis, index: int) -> Redis:
    run = redis.runs[index]
    if run is not None and not run.ended:
        redis = changed(redis, index, log=(*run.log, "end joined"), ended="joined", is_due=False)
    return without_waiting(redis, index)


def _after_look(redis: Redis, run: Run, worker: Worker, rules: Rules) -> Step:
    result, results_seen = worker.looked
    if result and result != "taken":
        if rules.result_is_kept:
            return _said(redis, run, worker, f"r{result}")
        return changed(redis, worker.run, result="taken"), worker._replace(phase="took")
    if run.lease not in (worker.acquisition, 0):
        return redis, None
    is_due = run.is_cancelled or (rules.park_compares_results and run.results_seen != results_seen)
    return changed(redis, worker.run, has_worker=False, lease=0, is_parked=True, is_due=is_due), None


# --- invariants ----------------------------------------------------------


def violation(state: State, kinds: tuple[str, ...]) -> str | None:
    """Returns the violated invariant of this state, or None."""
    redis, thread = state.redis, state.redis.thread
    at_work = [
        i for i, run in enumerate(redis.runs) if run is not None and not run.ended and (run.has_worker or run.log)
    ]
    if any(index != thread.active for index in at_work):
        return f"runs {at_work} are at work, and {thread.active} is active"
    messages = [word for run in redis.runs if run is not None for word in run.log if word[0] == "m"]
    for index in RUNS:
        if wrong := _run_violation(state, index, messages):
            return wrong
    for worker in state.workers:
        if worker is not None and (wrong := _history_violation(redis, worker, messages)):
            return wrong
    enqueued = [index for index in redis.created if kinds[index] == "enqueue" and index in thread.turns]
    if [index for index in thread.turns if kinds[index] == "enqueue"] != enqueued:
        return f"enqueued runs changed places: created {redis.created}, turns {thread.turns}"
    if state.answers.count("accepted") > 1:
        return "two results of one call were accepted"
    return None


def _run_violation(state: State, index: int, messages: list[str]) -> str | None:
    redis, thread, run = state.redis, state.redis.thread, state.redis.runs[index]
    if messages.count(f"m{index}") + (index in thread.turns) > 1:
        return f"the message of run {index} is in two places: {messages}, turns {thread.turns}"
    if index in redis.tombstones and (run is not None or f"m{index}" in messages):
        return f"run {index} was deleted and is there again: {run}, {messages}"
    if run is not None and state.posts[index] == "refused" and ("post", index) not in state.lost:
        return f"post {index} was refused and has a run"
    return _log_violation(index, run, thread) if run is not None else None


def _log_violation(index: int, run: Run, thread: Thread) -> str | None:
    if [word for word in run.log if word.startswith("end")] != list(run.log[-1:] if run.ended else ()):
        return f"run {index} has not exactly one end, its last: {run.log}"
    if len(set(run.log)) != len(run.log) or len([word for word in run.log if word[0] == "r"]) > 1:
        return f"run {index} says something twice: {run.log}"
    out = thread.outs[index]
    if run.ended and index in thread.turns and out is not None and out != outcome(run.log[:-1]):
        return f"turn {index} is {out}, its log {run.log}"
    return None


def _history_violation(redis: Redis, worker: Worker, messages: list[str]) -> str | None:
    run, thread = redis.runs[worker.run], redis.thread
    if not worker.seen or run is None or run.attempt != worker.attempt or run.ended or worker.run not in thread.turns:
        return None
    if "missing" in worker.seen:
        return f"run {worker.run} began before a turn's outcome was stored: {worker.seen}"
    # A worker keeps what it has read. Messages that joined a run are not those of turns.
    joined = {f"m{index}" for index, other in enumerate(redis.runs) if other is not None and other.ended == "joined"}
    gone = {f"m{index}" for index in redis.tombstones} | joined | set(messages)
    before = [f"m{turn}" for turn in thread.turns[: thread.turns.index(worker.run)]]
    seen = [word for word in worker.seen[:-1] if word[0] == "m" and word not in gone]
    if seen != [word for word in before if word not in gone]:
        return f"run {worker.run} saw {worker.seen}, the turns before it are {thread.turns}"
    return None


def stranded(state: State, kinds: tuple[str, ...]) -> str | None:
    """Returns what is wrong in a state in which nothing more can happen but faults, or None."""
    redis = state.redis
    for index, run in enumerate(redis.runs):
        if run is None:
            if state.posts[index] == "accepted" and index not in redis.tombstones and ("run", index) not in state.lost:
                return f"post {index} was accepted and its run is nowhere"
            continue
        if not run.ended:
            return f"run {index} never ends: {run}, {redis.thread}"
        if run.ended == "done" and index not in redis.thread.turns:
            return f"run {index} is done and no turn"
        if run.ended == "cancelled" and not run.is_cancelled:
            return f"run {index} was cancelled, though nobody asked for it: {kinds}"
    run = redis.runs[CALLER]
    for client, answer in enumerate(state.answers):
        if answer == "accepted" and run is not None and run.ended == "done" and f"r{'xy'[client]}" not in run.log:
            return f"the result of client {client} was accepted and not used: {run.log}"
    return None


# --- the walk ------------------------------------------------------------


def canonical(state: State) -> State:
    """Returns an equivalent state: of the numbers only their order matters, and the workers are alike."""
    numbers = {0, state.clock}
    for redis in (state.redis, state.saved):
        for run in redis.runs if redis is not None else ():
            if run is not None:
                numbers.update((run.attempt, run.lease))
    workers = state.workers
    for worker in workers:
        if worker is not None:
            numbers.update((worker.acquisition, worker.attempt))
    ender = state.ender
    if ender is not None:
        numbers.add(ender.attempt)
    if len(numbers) <= max(numbers):
        rank = {number: place for place, number in enumerate(sorted(numbers))}
        workers = tuple([
            worker and worker._replace(acquisition=rank[worker.acquisition], attempt=rank[worker.attempt])
            for worker in workers
        ])  # fmt: skip
        state = state._replace(
            redis=_ranked(state.redis, rank), saved=state.saved and _ranked(state.saved, rank), clock=rank[state.clock],
            ender=ender and ender._replace(attempt=rank[ender.attempt]), workers=workers,
        )  # fmt: skip
    first, second = workers
    if second is not None and (first is None or second < first):
        return state._replace(workers=(second, first))
    return state


def _ranked(redis: Redis, rank: dict[int, int]) -> Redis:
    runs = tuple([run and run._replace(attempt=rank[run.attempt], lease=rank[run.lease]) for run in redis.runs])
    return redis._replace(runs=runs)


class Walk(NamedTuple):
    """The number of states of a walk and the first violation."""

    states: int
    violation: str | None


def explore(
    kinds: tuple[str, ...], budget: Budget, rules: Rules = ALL_RULES, *, clients: int = 1, states_max: int = 10**7
) -> Walk:
    """Walks through every state; stops at the first violation.

    Args:
        kinds: `on_active` of each of the three posts.
        clients: how many clients give a result.
    """
    with gc_paused():  # all states are kept and none refers to later ones, so there is no garbage
        return _explore(initial(budget, clients), kinds, rules, states_max)


def _explore(first: State, kinds: tuple[str, ...], rules: Rules, states_max: int) -> Walk:
    frontier = [first]
    seen = set(frontier)
    while frontier:
        nexts = []
        for state in frontier:
            can_go_on = False
            for following in steps(state, kinds, rules):
                can_go_on = can_go_on or (following.budget == state.budget and following.saved == state.saved)
                reached = canonical(following)
                if reached in seen:
                    continue
                seen.add(reached)
                if wrong := violation(reached, kinds):
                    return Walk(len(seen), wrong)
                nexts.append(reached)
            if not can_go_on and (wrong := stranded(state, kinds)):
                return Walk(len(seen), wrong)
        if len(seen) > states_max:
            raise RuntimeError(f"more than {states_max} states")
        frontier = nexts
    return Walk(len(seen), None)


REJECT, ENQUEUE, STEER, INTERRUPT = "reject", "enqueue", "steer", "interrupt"
# Each with the number of clients that give a result.
FURTHER = (
    ((ENQUEUE, ENQUEUE, ENQUEUE), Budget(deaths=1, replies=1), 2),
    ((ENQUEUE, STEER, STEER), Budget(deaths=1, replies=1), 1),
    ((ENQUEUE, STEER, INTERRUPT), Budget(deaths=1), 1),
    ((ENQUEUE, STEER, INTERRUPT), Budget(cancels=1), 1),
    ((ENQUEUE, STEER, INTERRUPT), Budget(deletes=1), 2),
    ((ENQUEUE, INTERRUPT, INTERRUPT), Budget(deaths=1), 1),
    ((STEER, INTERRUPT, INTERRUPT), Budget(replies=1), 1),
    ((REJECT, REJECT, REJECT), Budget(tails=1), 1),
    ((ENQUEUE, STEER, ENQUEUE), Budget(tails=1), 1),
    ((ENQUEUE, INTERRUPT, ENQUEUE), Budget(tails=1), 1),
)


def main() -> None:
    """Walks further than the test suite does: 600,000 states in about five minutes."""
    for kinds, budget, clients in FURTHER:
        walk = explore(kinds, budget, clients=clients)
        print(f"{kinds}, {budget}: {walk.states} states, {walk.violation or 'clean'}")
    walk = explore((REJECT,) * 3, Budget(deaths=1, tails=1), Rules(claim_needs_lease=False))
    print(f"without claim_needs_lease: {walk.states} states, {walk.violation or 'NO VIOLATION FOUND'}")


if __name__ == "__main__":
    main()
