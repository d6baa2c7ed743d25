"""State machine of the threads' scripts: Hypothesis runs many interleavings against a real Redis.

Posts of every kind, two workers, cancels, ends by gateways and the sweep, deletions, records that are lost, entries of the
queue that are made again. Each call may be repeated, as if its reply was lost. Each rule predicts what its script answers and
changes; Redis must then have exactly that thread.
"""

from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import RUN_STAGE, RunStatus
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.threads import ROOT, OnActive, ThreadIdentity, ThreadRequest
from stagebus.shared.errors import Fenced, RunDeleted, RunEnded, StagebusError
from stagebus.shared.storage import keys, queue_scripts, run_scripts, thread_scripts
from stagebus.shared.storage.run_scripts import LogEntry, TerminalState
from stagebus.shared.storage.thread_keys import RunThread, ThreadAdmission, ThreadEnd, ThreadTimes
from stagebus.shared.storage.thread_scripts import Mended
from stagebus.shared.store import run_deletion
from stagebus.shared.thread_errors import ParentNotEnded, ParentNotFound, ThreadBusy, TurnNotCome
from tests.model.test_protocol_machine import Direct

IDENTITY = ThreadIdentity("t", "", "chat")
KEY = keys.thread(IDENTITY)
TIMES = ThreadTimes(600, 600)
RUNS = [ids.new_run_id_in(IDENTITY.tag) for _ in range(5)]
OWNER = RunOwner("t")
MESSAGES = [{"role": "user", "content": "hello"}]
OUT = b'[{"role":"assistant","content":"hi"}]'
DONE = TerminalState(RunStatus.SUCCEEDED, retention_s=60)
POISON = TerminalState(RunStatus.FAILED, retention_s=60, error=b'{"error":"no","code":"model_rejected"}')
PUBLIC = [
    keys.QUEUE, keys.WAKEUP, keys.ACTIVE, keys.RUNNING, keys.THROTTLED, keys.VIRTUAL_TIME, keys.tenant_virtual_time("t"),
    keys.runs("t"), keys.active_of_tenant("t"), keys.feed("t"), keys.outbox(), keys.outbox_bell(),
]  # fmt: skip

FIRST = EventId(0, 1)  # run_queued

WORKERS = st.sampled_from(["w0", "w0", "w1"])
SOME_RUN = st.sampled_from(RUNS)
KINDS = st.sampled_from([OnActive.ENQUEUE, OnActive.STEER, OnActive.INTERRUPT, OnActive.REJECT])
PARENTS = st.sampled_from([None] * 6 + [ROOT, *RUNS])
RARELY = st.sampled_from([False] * 5 + [True])


@dataclass
class ModelRun:
    """A run's record and log as they are expected."""

    attempt: int = 0
    last_id: EventId = FIRST
    is_cancelled: bool = False
    is_ended: bool = False
    holder: str = ""  # the token in its lease
    is_due: bool = False


@dataclass
class ModelThread:
    """The thread as it is expected."""

    active: str = ""
    head: str = ""
    waiting: list[tuple[str, str]] = field(default_factory=list)  # each run, and its field `w:`
    turns: list[str] = field(default_factory=list)
    parents: dict[str, str] = field(default_factory=dict)  # also those that waiting runs named
    statuses: dict[str, str] = field(default_factory=dict)
    ins: set[str] = field(default_factory=set)
    outs: set[str] = field(default_factory=set)
    gone: dict[str, str] = field(default_factory=dict)  # runs that left before their turn, and how
    deleted: set[str] = field(default_factory=set)

    def how(self, run_id: str) -> str:
        return dict(self.waiting).get(run_id, "")

    def waiting_interrupt(self) -> str:
        return next((run_id for run_id, how in self.waiting if how == "interrupt"), "")

    def leave(self, run_id: str, reason: str) -> bool:
        if not self.how(run_id):
            return False
        self.waiting = [entry for entry in self.waiting if entry[0] != run_id]
        self.parents.pop(run_id, None)
        self.ins.discard(run_id)
        self.gone[run_id] = reason
        return True


class ThreadProtocol(RuleBasedStateMachine):
    client: ClassVar[Redis]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.thread = ModelThread()
        self.runs: dict[str, ModelRun] = {}
        self.tombstones: set[str] = set()
        self.claims: dict[str, tuple[str, int, EventId]] = {}  # run, attempt and end of the log by worker
        self.tokens = count()

    def call(self, script: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            script(Direct(self.client), *args, **kwargs).send(None)
        except StopIteration as done:
            return done.value
        except StagebusError as exc:  # returned as the answer
            return type(exc)
        raise AssertionError("it waited")

    # --- expected changes -----------------------------------------------------

    def activate(self, run_id: str) -> None:
        thread = self.thread
        thread.parents.setdefault(run_id, thread.head)
        thread.turns.append(run_id)
        thread.active = thread.head = run_id
        if run_id in self.runs:
            self.runs[run_id].is_due = True

    def start_next(self) -> None:
        self.thread.active = ""
        if self.thread.waiting:
            run_id, _ = self.thread.waiting.pop(0)
            self.activate(run_id)

    def close(self, status: str, *, has_out: bool, is_off_branch: bool = False) -> None:
        thread, run_id = self.thread, self.thread.active
        thread.statuses[run_id] = status
        if has_out:
            thread.outs.add(run_id)
        if is_off_branch:
            thread.head = thread.parents[run_id]
        self.start_next()

    def end_run(self, run_id: str, end: TerminalState) -> None:
        run = self.runs[run_id]
        run.is_ended, run.holder, run.is_due = True, run.holder, False
        if self.thread.active == run_id:
            self.close(end.status.value, has_out=True, is_off_branch=end is POISON)
        else:
            self.thread.leave(run_id, "left")

    def heal(self) -> bool:
        """Closes the turn of an active run that is gone; returns whether it was."""
        active = self.thread.active
        if not active or active in self.runs:
            return False
        self.close("lost", has_out=False)
        return True

    # --- rules ----------------------------------------------------------------

    @rule(run_id=SOME_RUN, kind=KINDS, parent=PARENTS, is_stale=RARELY)
    def post(self, run_id: str, kind: OnActive, parent: str | None, is_stale: bool) -> None:
        """Posts as a gateway does: names the runs that the reply expects, and repeats. A stale one names another run."""
        expected = ("", "")
        if is_stale:
            expected = (next((other for other in self.runs if other != self.thread.active), ""), "")
        for _ in range(8):
            answer = self._create(run_id, kind, parent, expected)
            wanted = self._expected_answer(run_id, kind, parent, expected)
            if wanted != "expected":
                break
            assert answer.expected is not None
            expected = answer.expected
            wanted_interrupt = self.thread.waiting_interrupt() if kind is OnActive.INTERRUPT else ""
            assert expected == (self.thread.active, wanted_interrupt)
        if wanted != "created":
            assert answer == wanted or (wanted == "exists" and not answer.is_new)
            return
        assert answer.is_new
        self._joined(run_id, kind, parent)
        repeated = self._create(run_id, kind, parent, expected)
        assert not repeated.is_new, "a repeated post finds its own run"
        assert repeated.expected is None

    def _create(self, run_id: str, kind: OnActive, parent: str | None, expected: tuple[str, str]) -> Any:
        request = ThreadRequest(IDENTITY, MESSAGES, kind, parent)
        admission = ThreadAdmission(request, TIMES, "life", expected_active=expected[0], expected_interrupt=expected[1])
        return self.call(
            run_scripts.create, run_id, tenant="t", model="m", request=b"{}", event="run_queued", data=b"{}",
            life_s=600, job=b"{}", thread=admission,
        )  # fmt: skip

    def _expected_answer(self, run_id: str, kind: OnActive, parent: str | None, expected: tuple[str, str]) -> Any:
        thread = self.thread
        if run_id in self.runs:
            return "exists"
        if run_id in self.tombstones:
            return RunDeleted
        interrupt = thread.waiting_interrupt() if kind is OnActive.INTERRUPT else ""
        if thread.active and expected != (thread.active, interrupt):
            return "expected"
        if self.heal() and thread.active:
            return "expected"
        if parent not in (None, ROOT) and parent not in thread.statuses and parent != thread.active:
            return ParentNotEnded if thread.how(str(parent)) else ParentNotFound
        return ThreadBusy if thread.active and kind is OnActive.REJECT else "created"

    def _joined(self, run_id: str, kind: OnActive, parent: str | None) -> None:
        thread = self.thread
        self.runs[run_id] = ModelRun()
        thread.ins.add(run_id)
        thread.gone.pop(run_id, None)
        if parent is not None:
            thread.parents[run_id] = "" if parent == ROOT else parent
        if not thread.active:
            self.activate(run_id)
        elif kind is OnActive.INTERRUPT:
            older = thread.waiting_interrupt()
            for other in filter(None, (thread.active, older)):
                if other in self.runs:
                    self.runs[other].is_cancelled = True
            thread.leave(older, "left")
            taken = {f"steer:{thread.active}", f"steer:{older}"}
            rest = [(other, f"steer:{run_id}" if how in taken else how) for other, how in thread.waiting]
            thread.waiting = [(run_id, "interrupt"), *rest]
        else:
            how = f"steer:{thread.active}" if kind is OnActive.STEER else kind.value
            thread.waiting.append((run_id, how))

    @rule(name=WORKERS, run_id=SOME_RUN, is_stray=st.booleans())
    def claim(self, name: str, run_id: str, is_stray: bool) -> None:
        """Acquires and claims. An active run's lease may have expired, and a waiting run may look due."""
        run = self.runs.get(run_id)
        if run is None or run.is_ended:
            return
        if is_stray or run_id == self.thread.active:
            self.client.delete(keys.lease(run_id))
            self.client.zadd(keys.QUEUE, {run_id: 1})
            run.holder, run.is_due = "", True
        token = f"{name} {next(self.tokens)}"
        is_acquired = self.call(queue_scripts.acquire, run_id, token, 600)
        assert is_acquired == (run.is_due and not run.holder)
        if not is_acquired:
            return
        run.holder, run.is_due = token, False
        claim = self.call(run_scripts.claim, run_id, name, token=token, thread_key=KEY)
        if self.thread.active != run_id:
            assert claim is TurnNotCome
            run.holder = ""
            assert self.call(run_scripts.claim, run_id, name, token=token, thread_key=KEY) is Fenced, (
                "it was given back"
            )
            return
        assert claim.attempt > run.attempt
        assert (claim.last_id, claim.cancel) == (run.last_id, run.is_cancelled)
        run.attempt = claim.attempt
        self.claims[name] = (run_id, claim.attempt, claim.last_id)

    @rule(name=WORKERS, end=st.sampled_from([DONE, DONE, POISON]))
    def end(self, name: str, end: TerminalState) -> None:
        if name in self.claims:
            run_id, attempt, last_id = self.claims.pop(name)
            self._append_end(run_id, attempt, last_id, end)

    @rule(run_id=SOME_RUN)
    def end_by_sweep(self, run_id: str) -> None:
        """Ends a run whoever holds it, as a deletion does."""
        run = self.runs.get(run_id)
        claim = self.call(run_scripts.claim, run_id, "")
        if run is None or run.is_ended:
            assert claim is RunEnded
            return
        run.attempt = claim.attempt
        self._append_end(run_id, claim.attempt, claim.last_id, DONE)

    def _append_end(self, run_id: str, attempt: int, last_id: EventId, end: TerminalState) -> None:
        thread = ThreadEnd(RunThread(run_id, KEY, "t", TIMES), "model_rejected" if end is POISON else "", OUT)
        terminal = TerminalState(end.status, 60, end.error, thread=thread)
        run = self.runs.get(run_id)
        args: dict[str, Any] = {"attempt": attempt, "before": last_id, "message": b"m", "end": terminal, "tenant": "t"}
        args |= {"entries": [LogEntry(RUN_STAGE, "done", b"{}")], "stage_ids": [RUN_STAGE]}
        answer = self.call(run_scripts.append, run_id, **args)
        if run is None:
            assert answer is RunEnded
        elif run.attempt != attempt:
            assert answer is Fenced
        elif run.is_ended:
            assert answer is RunEnded or answer.last_id == run.last_id
        else:
            run.last_id = EventId(attempt, last_id.sequence + 1)
            assert answer.last_id == run.last_id
            self.end_run(run_id, end)
            assert self.call(run_scripts.append, run_id, **args) == answer, "the repetition is recognised"

    @rule(name=WORKERS, joining_id=SOME_RUN, is_any=RARELY)
    def steer(self, name: str, joining_id: str, is_any: bool) -> None:
        """Takes a run that waits to join, or another one: its worker may have read that long ago."""
        if name not in self.claims and self.thread.active:
            self.claim(name, self.thread.active, is_stray=False)
        if name not in self.claims:
            return
        run_id, attempt, last_id = self.claims[name]
        steering = [other for other, how in self.thread.waiting if how == f"steer:{run_id}"]
        joining_id = joining_id if is_any or not steering else steering[0]
        run, joining = self.runs.get(run_id), self.runs.get(joining_id)
        args: dict[str, Any] = {"attempt": attempt, "before": last_id, "message": b"m", "joining_id": joining_id}
        args |= {"added": LogEntry(RUN_STAGE, "message_added", b"{}"), "end": DONE, "done": b"{}"}
        answer = self.call(thread_scripts.steer, RunThread(run_id, KEY, "t", TIMES), **args)
        if run is None or run.is_ended:
            assert answer is RunEnded
        elif run.attempt != attempt:
            assert answer is Fenced
        elif self.thread.how(joining_id) != f"steer:{run_id}" or run.is_cancelled or joining is None:
            assert answer is None
        else:
            run.last_id = EventId(attempt, last_id.sequence + 1)
            assert answer.last_id == run.last_id
            again = self.call(thread_scripts.steer, RunThread(run_id, KEY, "t", TIMES), **args)
            assert again == answer, "the repetition is recognised"
            self.claims[name] = (run_id, attempt, run.last_id)
            self.thread.leave(joining_id, f"merged:{run_id}")
            joining.is_ended, joining.is_due = True, False

    @rule(run_id=SOME_RUN)
    def cancel(self, run_id: str) -> None:
        run = self.runs.get(run_id)
        for _ in range(2):
            answer = self.call(run_scripts.cancel, run_id, "", RunThread(run_id, KEY, "t", TIMES))
            assert (answer is RunEnded) == (run is None or run.is_ended)
        if run is not None and not run.is_ended:
            run.is_cancelled = True
            self.thread.leave(run_id, "left")

    @precondition(lambda self: any(run.is_ended for run in self.runs.values()))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Deletes a run that has ended and is accounted."""
        run_id = data.draw(st.sampled_from([run_id for run_id, run in self.runs.items() if run.is_ended]))
        self.client.zrem(keys.ACTIVE, run_id)
        thread = RunThread(run_id, KEY, "t", TIMES)
        for _ in range(2):
            assert self.call(run_deletion.delete_ended, run_id, OWNER, thread=thread) is True
        del self.runs[run_id]
        self.tombstones.add(run_id)
        self._emptied(run_id)

    def _emptied(self, run_id: str) -> None:
        if run_id in self.thread.turns:
            self.thread.deleted.add(run_id)
            self.thread.ins.discard(run_id)
            self.thread.outs.discard(run_id)

    @rule(run_id=SOME_RUN, is_wanted=RARELY)
    def lose(self, run_id: str, is_wanted: bool) -> None:
        """Somebody deletes a run's keys by hand."""
        run = self.runs.get(run_id)
        if run is None or run.is_ended or not is_wanted:
            return
        self.client.delete(*keys.all_of_run(run_id), keys.lease(run_id))
        self.client.zrem(keys.QUEUE, run_id)
        del self.runs[run_id]
        self.tombstones.add(run_id)  # its id is not used again in this model
        self.client.hset(keys.run(run_id), mapping={"deleted_of": "t", "deleted_at": "1"})
        self.client.expire(keys.run(run_id), 600)

    @precondition(lambda self: self.thread.turns)
    @rule()
    def mend(self) -> None:
        """Repairs as the sweep does, until nothing is left to repair."""
        for _ in range(len(RUNS) + 1):
            done, active = self.call(thread_scripts.mend, KEY, "t", TIMES, active=self.thread.active)
            assert (done is Mended.CLOSED) == self.heal()
            assert active == self.thread.active
            if done is Mended.NONE:
                return
        raise AssertionError("it repairs without an end")

    # --- what must hold -------------------------------------------------------

    @invariant()
    def redis_holds_what_the_rules_say(self) -> None:
        thread = self.thread
        if not thread.turns:
            assert not self.client.exists(KEY)
            return
        with self.client.pipeline() as pipe:
            pipe.hgetall(KEY).hgetall(keys.thread_turns(KEY)).lrange(keys.thread_line(KEY), 0, -1)
            pipe.zrange(keys.thread_order(KEY), 0, -1).hgetall(keys.thread_in(KEY)).hgetall(keys.thread_out(KEY))
            pipe.smembers(keys.threads_busy(IDENTITY.tag)).pttl(KEY)
            record, fields, line, order, ins, outs, busy, ttl_ms = pipe.execute()
        fields = {name.decode(): value.decode() for name, value in fields.items()}
        assert (record[b"active"].decode(), record[b"head"].decode()) == (thread.active, thread.head)
        waiting = [(run_id.decode(), fields[f"w:{run_id.decode()}"]) for run_id in line]
        assert waiting == thread.waiting
        assert [run_id.decode() for run_id in order] == thread.turns
        assert {name[2:]: value for name, value in fields.items() if name[:2] == "p:"} == thread.parents
        assert {name[2:]: value for name, value in fields.items() if name[:2] == "s:"} == thread.statuses
        assert {name[2:] for name in fields if name[:2] == "d:"} == thread.deleted
        gone = {name[2:]: value for name, value in fields.items() if name[:2] == "w:" and name[2:] not in dict(waiting)}
        assert gone == thread.gone
        assert {run_id.decode() for run_id in ins} == thread.ins
        assert {run_id.decode() for run_id in outs} == thread.outs
        assert int(record[b"bytes"]) == sum(map(len, [*ins.values(), *outs.values()]))
        assert int(record[b"count"]) == len(thread.turns) + len(thread.waiting)
        assert bool(busy) == bool(thread.active or thread.waiting)
        assert ttl_ms > 0

    @invariant()
    def only_the_active_run_may_be_due(self) -> None:
        for run_id, run in self.runs.items():
            score = self.client.zscore(keys.QUEUE, run_id)
            if run.is_ended or run.holder:
                continue
            assert score is not None
            assert (score < keys.THROTTLED_SCORE) == run.is_due

    def teardown(self) -> None:
        """Lets everything end that is active or waits: each run gets its turn, and nothing stays."""
        if not self.thread.turns:
            return
        for _ in range(2 * len(RUNS)):
            self.mend()
            if not self.thread.active:
                break
            self.end_by_sweep(self.thread.active)
        assert (self.thread.active, self.thread.waiting) == ("", [])
        self.redis_holds_what_the_rules_say()
        life_id, run_ids = self.call(thread_scripts.drop, KEY, "t", TIMES)
        assert set(run_ids) == {*self.thread.turns, *self.thread.gone}
        assert self.call(thread_scripts.forget, KEY, "t", TIMES, life_id) is True
        assert self.call(thread_scripts.forget, KEY, "t", TIMES, life_id) is False
        assert self.client.keys("sb:thread*") == []


def test_threads_hold_in_any_interleaving(redis_url: str) -> None:
    with Redis.from_url(redis_url.removesuffix("/0") + "/8") as client:  # a separate database
        ThreadProtocol.client = client
        run_state_machine_as_test(
            ThreadProtocol,
            settings=settings(
                max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck),
                backend="hypothesis-urandom",
            ),
        )  # fmt: skip
