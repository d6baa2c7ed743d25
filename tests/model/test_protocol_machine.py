"""State machine of the queue's and the log's scripts: Hypothesis runs many interleavings against a real Redis.

Two workers and the gateway acquire, claim, append, renew, release, park, decide, deliver results, lease calls, finish,
cancel and sweep one run.
Replies are lost, leases and approvals expire, Redis loses its tail. Each rule predicts what its script answers and
changes; Redis must then have exactly that state. At the end of each interleaving the run is deleted.

A rule first does what it requires (an append claims, a claim acquires), since Hypothesis leaves some rules out of each
example: a rule that needed three others would hardly ever run.
"""

from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar, NamedTuple

import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis

from stagebus.shared.call_errors import CallClaimed, CallHasResult
from stagebus.shared.domain import call_results, decisions, ids
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.runs import RUN_STAGE, RunStatus
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import Fenced, RunEnded
from stagebus.shared.log import live_batch
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.queue_scripts import Renewal
from stagebus.shared.storage.run_scripts import AppendResult, LogEntry, TerminalState
from stagebus.shared.store import parking, run_deletion
from stagebus.shared.store.parking import Seen

LIFE_S, LEASE_S = 600, 60
GATEWAY, SWEEP = "gateway", "sweep"
GUARDS: dict[str, run_scripts.ClaimGuard] = {GATEWAY: "worker", SWEEP: "lease"}
END = TerminalState(RunStatus.SUCCEEDED, retention_s=60)
RUN = ids.new_run_id()
STREAMS = {stage_id: keys.stage_stream(RUN, stage_id) for stage_id in [RUN_STAGE, "extraction", "tools"]}
RUN_KEYS = [keys.run(RUN), keys.stages(RUN), *STREAMS.values()]
SHARED_KEYS = [keys.QUEUE, keys.WAKEUP, keys.ACTIVE, keys.RUNNING, keys.THROTTLED, keys.VIRTUAL_TIME]
ALL_KEYS = [
    *RUN_KEYS,
    keys.results(RUN),
    keys.lease(RUN),
    keys.job(RUN),
    *SHARED_KEYS,
    keys.tenant_virtual_time("t"),
    keys.active_of_tenant("t"),
]
RUNNING_MAX = 1
NOTHING = Seen()
REF = "5-2"
GONE_TTL = -2  # the reply of PTTL for a key that does not exist
LATER_MS = 4 * 10**12  # when approvals expire
MINE, OTHER = f"t {RUN}", "t another run of the tenant"


class Stored(NamedTuple):
    """The expected state of the run in Redis."""

    log: tuple[tuple[EventId, LogEntry], ...]
    status: RunStatus = RunStatus.QUEUED
    attempt: int = 0
    tries: int = 0
    worker: str = ""
    is_cancelled: bool = False
    is_queued: bool = False
    is_due: bool = False
    holder: str | None = None  # the token in the lease
    is_running: bool = False  # counts as one of its tenant's running runs
    is_throttled: bool = False
    is_other_running: bool = False  # another run uses the tenant's limit of one
    decisions: tuple[tuple[str, str], ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    leases: tuple[tuple[str, str, bool], ...] = ()  # call, holder, once
    last_change: int = -1  # the last decision or result, or lease that a worker has to know; each has its own number
    is_woken: bool = False  # parked, with a change that the parking worker had not seen

    @property
    def last_id(self) -> EventId:
        return self.log[-1][0]

    @property
    def is_ended(self) -> bool:
        return self.log[-1][1].event == "done"

    @property
    def stage_ids(self) -> list[str]:
        return list(dict.fromkeys(entry.stage_id for _, entry in self.log))


@dataclass
class Worker:
    """The knowledge of a worker, or of the gateway, about the run; it appends as the producer does."""

    token: str | None = None
    attempt: int | None = None
    base: EventId = START  # the id before the kept events
    kept: list[LogEntry] = field(default_factory=list)
    sent: int = 0  # how many of them it knows to be in the log
    seen: Seen = NOTHING  # what it read last
    seen_change: int = -1  # the last change then
    is_leaving: bool = False  # it sent a park whose reply was lost

    def drop(self) -> None:
        self.token = self.attempt = None
        self.is_leaving = False

    def hear(self, answer: Any) -> None:
        """Takes the reply of an append. If the log is behind, the lost events will be sent again."""
        if answer is Fenced:
            self.drop()
        elif isinstance(answer, AppendResult):
            last_id, self.sent = answer.last_id, answer.last_id.sequence - self.base.sequence
            if last_id != self.base and (last_id.attempt != self.attempt or not 0 < self.sent <= len(self.kept)):
                self.attempt = None


@dataclass
class Direct:
    """A blocking client for the scripts' functions: without an event loop they take a third of the time."""

    client: Redis

    async def execute_command(self, *args: Any) -> Any:
        return self.client.execute_command(*args)


# Mostly the same name, so that an attempt makes progress.
WORKERS = st.sampled_from(["w0", "w0", "w1"])
ANYONE = st.sampled_from(["w0", "w0", "w0", "w1", GATEWAY, SWEEP])
BATCHES = st.lists(st.lists(st.sampled_from(["extraction", "tools"]), min_size=1, max_size=3), min_size=1, max_size=3)
RARELY = st.sampled_from([False] * 7 + [True])
DECISIONS = [Decision(decision="approve"), Decision(decision="deny"), decisions.EXPIRED]


def _read_outside(fields: dict[bytes, bytes]) -> dict[str, Any]:
    """Returns the results and the leases of the hash."""
    results, leases = [], []
    for field_name, text in fields.items():
        kind, ref, call_id = field_name.decode().split(" ")
        assert ref == REF
        if kind == "result":
            results.append((call_id, call_results.decode(text).content))
        else:
            lease = call_results.decode_lease(text)
            leases.append((call_id, lease.holder, lease.is_once))
    return {"results": tuple(sorted(results)), "leases": tuple(sorted(leases))}


class LogProtocol(RuleBasedStateMachine):
    client: ClassVar[Redis]

    def __init__(self) -> None:
        super().__init__()
        self.workers = {name: Worker() for name in ["w0", "w1", *GUARDS]}
        self.copies: list[tuple[Stored, list[tuple[str, int, bytes]]]] = []
        self.content_by_id: dict[EventId, bytes] = {}
        self.attempt_max, self.numbers = 0, count()
        self.client.delete(*ALL_KEYS)
        first = {"event": "run_queued", "data": b"{}"}
        self.stored = Stored(log=((EventId(0, 1), LogEntry(RUN_STAGE, **first)),))
        created = self.call(run_scripts.create, RUN, tenant="t", model="m", request=b"{}", life_s=LIFE_S, **first)
        self.created_at = created.created_at
        self.sweep()

    def call(self, script: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            script(Direct(self.client), *args, **kwargs).send(None)
        except StopIteration as done:
            return done.value
        except (Fenced, RunEnded, CallClaimed, CallHasResult) as exc:  # returned as the answer
            return type(exc)
        raise AssertionError("it waited")

    def change(self, **fields: Any) -> None:
        self.stored = self.stored._replace(**fields)

    @rule(name=WORKERS, is_again=RARELY, is_hasty=st.booleans())
    def acquire(self, name: str, is_again: bool, is_hasty: bool) -> None:
        """Acquires with a new token, or with the same one; immediately, or after the lease has expired."""
        worker = self.workers[name]
        if worker.token is None or not is_again:
            worker.drop()
            worker.token, worker.attempt = f"{name}-{next(self.numbers)}", None
        if not is_hasty:
            self.sweep()
            self.expire_lease(is_score_alone=False)
        is_mine = self.stored.holder == worker.token
        is_free = self.stored.is_due and self.stored.holder is None
        may_run = not self.stored.is_other_running or self.stored.is_running or self.stored.is_ended
        is_taken = self.call(queue_scripts.acquire, RUN, worker.token, LEASE_S, RUNNING_MAX)
        assert is_taken == (self.stored.is_queued if is_mine else is_free and may_run)
        if is_free and not is_mine:
            self.change(is_throttled=not may_run, is_running=may_run, is_due=False)
        if self.stored.is_due and not is_mine:
            self.change(is_due=False)
        if is_taken:
            self.change(holder=worker.token)
        if not is_taken:
            worker.drop()

    def _acquired(self, name: str) -> Worker:
        if self.workers[name].token is None and name not in GUARDS:
            self.acquire(name, is_again=False, is_hasty=False)
        return self.workers[name]

    @rule(is_score_alone=st.booleans())
    def expire_lease(self, is_score_alone: bool) -> None:
        """Expires the lease and its score; only the score if a clock was changed."""
        if self.stored.is_throttled:
            return
        if not is_score_alone:
            self.client.delete(keys.lease(RUN))
            self.change(holder=None)
        self.client.zadd(keys.QUEUE, {RUN: 0}, xx=True)
        self.change(is_due=self.stored.is_queued)

    @rule()
    def other_run_starts(self) -> None:
        self.client.zadd(keys.RUNNING, {OTHER: 0})
        self.change(is_other_running=True)

    @rule(is_another=st.booleans())
    def admit(self, is_another: bool) -> None:
        """Ends the slot of this run or of the other one; a throttled run is admitted if there is room."""
        run_id = OTHER.removeprefix("t ") if is_another else RUN
        if is_another:
            self.change(is_other_running=False)
        elif self.stored.holder is None or self.stored.is_ended:  # otherwise another worker has acquired it since
            self.change(is_running=False)
        is_admitted = self.stored.is_throttled and not self.stored.is_other_running and not self.stored.is_running
        is_out = self.stored.is_throttled and self.stored.is_ended and not is_another
        assert self.call(queue_scripts.admit, run_id, RUNNING_MAX, tenant="t") == (is_admitted and not is_out)
        if is_admitted or is_out:
            self.change(is_throttled=False, is_due=self.stored.is_queued)

    @rule(name=WORKERS)
    def renew(self, name: str) -> None:
        worker, stored = self._claimed(name), self.stored
        if worker is None:
            return
        is_mine = stored.holder in (None, worker.token) and worker.attempt == stored.attempt and stored.worker != ""
        renewed = self.call(queue_scripts.renew, RUN, token=worker.token, attempt=worker.attempt, lease_s=LEASE_S)
        assert renewed == (Renewal(stored.is_cancelled, stored.last_id) if is_mine else None)
        if is_mine:
            self.change(holder=worker.token, is_due=False)
        else:
            worker.drop()

    @rule(name=WORKERS, delay_s=st.sampled_from([0, LEASE_S]), is_reply_lost=st.booleans())
    def release(self, name: str, delay_s: float, is_reply_lost: bool) -> None:
        worker = self._acquired(name)
        if worker.token is None:  # throttled
            return
        is_mine = self.stored.holder in (None, worker.token) and worker.attempt in (
            None,
            self.stored.attempt,
        )
        assert is_mine == self.call(
            queue_scripts.release, RUN, token=worker.token, attempt=worker.attempt, delay_s=delay_s
        )
        if is_mine:
            named = self.stored.worker if worker.attempt is None else ""
            self.change(holder=None, is_due=self.stored.is_queued and delay_s == 0, worker=named)
        if not is_reply_lost:
            worker.drop()

    @rule(name=WORKERS, is_looking=st.booleans(), is_reply_lost=st.booleans())
    def park(self, name: str, is_looking: bool, is_reply_lost: bool) -> None:
        """Parks as a worker that waits for a person. If the reply is lost, the worker sends the park again."""
        worker = self.workers[name] if self.workers[name].is_leaving else self._claimed(name)
        if worker is None:
            return
        if is_looking and not worker.is_leaving:
            self._look(worker)
        self._keep_copy()
        stored = self.stored
        is_mine = stored.holder in (None, worker.token) and worker.attempt == stored.attempt and not stored.is_ended
        args = {
            "token": worker.token,
            "attempt": worker.attempt,
            "due_ms": LATER_MS,
            "seen": worker.seen,
        }
        assert self.call(parking.park, RUN, **args) == is_mine
        if is_mine and stored.status is not RunStatus.PARKED:  # a repeated park changes nothing
            is_woken = stored.is_cancelled or stored.last_change != worker.seen_change
            is_due = is_woken and stored.is_queued
            self.change(holder=None, status=RunStatus.PARKED, worker="", is_due=is_due, is_woken=is_woken)
        worker.is_leaving = True
        if not is_reply_lost:
            worker.drop()

    def _look(self, worker: Worker) -> None:
        """Reads as a worker does before it parks."""
        news, stored = self.client.hmget(keys.run(RUN), ["news", "decisions"])
        worker.seen, worker.seen_change = Seen(int(news or 0), len(stored or b"")), self.stored.last_change

    def _announced(self) -> None:
        """Notes a change that the run's worker has to know; without a worker, it makes the run due."""
        stored = self.stored
        self.change(last_change=next(self.numbers))
        if not stored.worker:
            self.change(is_due=stored.is_queued, is_woken=stored.status is RunStatus.PARKED)

    @rule(call_id=st.sampled_from(["c1", "c2"]), decision=st.sampled_from(DECISIONS))
    def decide(self, call_id: str, decision: Decision) -> None:
        """Decides as a person or the clock. The first decision counts, and no wake-up is missed."""
        text, stored = decisions.encode(decision), self.stored
        standing = dict(stored.decisions).get(call_id)
        self._keep_copy()
        answer = self.call(parking.decide, RUN, call_id, text)
        if standing is not None or stored.is_ended:
            assert answer == (standing or RunEnded)
            return
        assert answer == text
        self.change(decisions=tuple(sorted([*stored.decisions, (call_id, text)])))
        self._announced()

    @rule(call_id=st.sampled_from(["c1", "c2"]), content=st.sampled_from(["a", "b"]))
    def deliver(self, call_id: str, content: str) -> None:
        """Gives a result as a client, a tool or the clock. The first result counts, and no wake-up is missed."""
        result, stored = CallResult(content=content), self.stored
        first = dict(stored.results).get(call_id)
        self._keep_copy()
        answer = self.call(parking.deliver, RUN, REF, call_id, result)
        if first is not None or stored.is_ended:
            assert answer == (CallResult(content=first) if first else RunEnded)
            return
        assert answer == result
        self.change(results=tuple(sorted([*stored.results, (call_id, content)])))
        self._announced()

    @rule(call_id=st.sampled_from(["c1", "c2"]), holder=st.sampled_from(["a tab", "b"]))
    def lease_call(self, call_id: str, holder: str) -> None:
        """Lets a client run a call. Nobody else gets it meanwhile; c2 runs once."""
        stored, is_once = self.stored, call_id == "c2"
        self._keep_copy()
        answer = self.call(parking.lease_call, RUN, REF, call_id, holder=holder, is_once=is_once)
        holders = {call: held_by for call, held_by, _ in stored.leases}
        if call_id in dict(stored.results):
            assert answer is CallHasResult
        elif stored.is_ended:
            assert answer is RunEnded
        elif holders.get(call_id, holder) != holder:
            assert answer is CallClaimed
        else:
            kept = [lease for lease in stored.leases if lease[0] != call_id]
            self.change(leases=tuple(sorted([*kept, (call_id, holder, is_once)])))
            if is_once and stored.worker:
                self._announced()
            if is_once and stored.status is RunStatus.PARKED and stored.is_queued and not stored.is_due:
                assert self.client.zscore(keys.QUEUE, RUN) <= answer, "the run is due when the lease lapses"

    @rule(name=WORKERS)
    def finish(self, name: str) -> None:
        """Finishes the job of a run that has ended, or that arq cannot run."""
        worker = self._acquired(name)
        if worker.token is None:
            return
        is_mine = self.stored.holder == worker.token
        assert self.call(queue_scripts.finish, RUN, worker.token) == is_mine
        if is_mine:
            self.change(holder=None, is_queued=False, is_due=False)
        worker.drop()

    @precondition(lambda self: not self.stored.is_due)
    @rule()
    def sweep(self) -> None:
        is_new = not self.stored.is_queued and not self.stored.is_ended
        assert self.call(queue_scripts.requeue, RUN, b"{}") == is_new
        self.change(is_queued=self.stored.is_queued or is_new, is_due=is_new or self.stored.is_due)

    @rule(name=ANYONE)
    def claim(self, name: str) -> None:
        """Claims the run. Gateway and sweep name no worker. Their claims fail if the run names one, or has a lease."""
        worker, stored = self._acquired(name), self.stored
        guard, who = GUARDS.get(name, ""), "" if name in GUARDS else name
        if worker.token is None and not guard:
            return
        self._keep_copy()
        claim = self.call(run_scripts.claim, RUN, who, guard=guard, token=worker.token or "")
        is_left_alone = {"worker": bool(stored.worker), "lease": stored.holder is not None, "": False}[guard]
        if stored.is_ended or is_left_alone:
            assert claim == (RunEnded if stored.is_ended else None)
            return
        if not guard and stored.holder != worker.token:
            assert claim is Fenced, "a worker's claim needs its own lease"
            worker.drop()
            return
        assert claim.attempt > self.attempt_max, "an attempt must be greater than all before, even after a lost tail"
        tries = stored.tries + (stored.worker not in ("", who))
        assert claim[1:4] == (stored.last_id, tries, stored.is_cancelled)
        assert claim.record[b"attempt"] == b"%d" % claim.attempt, "the returned record must be the one after the claim"
        self.change(attempt=claim.attempt, tries=tries, worker=who, status=RunStatus.RUNNING, is_woken=False)
        self.attempt_max = worker.attempt = claim.attempt
        worker.base, worker.kept, worker.sent = claim.last_id, [], 0
        worker.is_leaving = False
        self._look(worker)

    def _claimed(self, name: str) -> Worker | None:
        worker = self.workers[name]
        if worker.attempt is None:
            self.claim(name)
        return None if worker.attempt is None or worker.is_leaving else worker

    @rule(name=ANYONE, batches=BATCHES, is_reply_lost=st.booleans(), is_misread=RARELY)
    def append(self, name: str, batches: list[list[str]], is_reply_lost: bool, is_misread: bool) -> None:
        """Appends. A batch whose reply is lost is sent again with the next; a misread claim knows one event less."""
        for stage_ids in batches:
            made = [LogEntry(stage_id, "chunk", b"%d" % next(self.numbers)) for stage_id in stage_ids]
            self._append(name, made, is_reply_lost=is_reply_lost, is_misread=is_misread)

    @precondition(lambda self: len(self.stored.log) > 2)
    @rule(name=ANYONE, is_reply_lost=st.booleans())
    def end(self, name: str, is_reply_lost: bool) -> None:
        """Ends the run, but not as a first step: little can happen to an ended run."""
        self._append(name, [LogEntry(RUN_STAGE, "done", b"%d" % next(self.numbers))], is_reply_lost=is_reply_lost)

    def _append(self, name: str, made: list[LogEntry], *, is_reply_lost: bool, is_misread: bool = False) -> None:
        """Sends the events that are not known to be stored; after an end also one more, which no producer does."""
        worker = self._claimed(name)
        if worker is None:
            return
        if not worker.kept or worker.kept[-1].event != "done":
            worker.kept += made
        entries, stored = worker.kept[worker.sent :] or made[:1], self.stored
        before = EventId(worker.attempt, worker.base.sequence + worker.sent) if worker.sent else worker.base
        if is_misread and before == stored.last_id == worker.base:
            before = EventId(before.attempt, before.sequence - 1)
        batch = [(EventId(worker.attempt, sequence), e) for sequence, e in enumerate(entries, before.sequence + 1)]
        rest = batch[max(0, stored.last_id.sequence - before.sequence) :]
        is_end = entries[-1].event == "done"
        self._keep_copy()
        answer = self.call(
            run_scripts.append, RUN, attempt=worker.attempt, before=before, entries=entries,
            message=live_batch.encode(before, batch[-1][0], [entry.stage_id for entry in entries], []),
            end=END if is_end else None, stage_ids=stored.stage_ids if is_end else (),
        )  # fmt: skip
        if worker.attempt != stored.attempt:
            assert answer is Fenced
        elif stored.last_id != before and (stored.last_id.attempt != worker.attempt or stored.last_id < before):
            assert answer == AppendResult(stored.last_id, is_behind=True)
        elif rest and stored.is_ended:
            assert answer is RunEnded
        else:
            self.change(log=(*stored.log, *rest))
            assert answer == AppendResult(self.stored.last_id, stored.is_cancelled)
            if rest and is_end:
                self.change(status=END.status, worker="")
        if not is_reply_lost:
            worker.hear(answer)

    @precondition(lambda self: self.stored.is_ended or not self.stored.is_cancelled)
    @rule()
    def cancel(self) -> None:
        assert self.call(run_scripts.cancel, RUN) == (RunEnded if self.stored.is_ended else bool(self.stored.worker))
        self.change(is_cancelled=self.stored.is_cancelled or not self.stored.is_ended)
        if self.stored.status is RunStatus.PARKED and not self.stored.worker:
            self.change(is_due=self.stored.is_queued)

    @precondition(lambda self: self.copies)
    @rule(back=st.integers(1, 3))
    def lose_tail(self, back: int) -> None:
        """Restores Redis to the state before one of the last claims or appends; its clock goes on."""
        self.stored, dumps = self.copies[-min(back, len(self.copies))]
        self.created_at -= 1000  # more than the number of claims, each of which may be 1 ms ahead of the clock
        with self.client.pipeline() as pipe:
            pipe.delete(*ALL_KEYS)
            for key, ttl_ms, dump in dumps:
                pipe.restore(key, ttl_ms, dump)
            pipe.hset(keys.run(RUN), "created_at", self.created_at)
            pipe.execute()

    def _keep_copy(self) -> None:
        if not self.copies or self.copies[-1][0] != self.stored:
            with self.client.pipeline() as pipe:
                for key in ALL_KEYS:
                    pipe.dump(key)
                    pipe.pttl(key)
                replies = pipe.execute()
            dumps = zip(ALL_KEYS, replies[1::2], replies[::2], strict=True)
            kept = [(key, max(0, ttl_ms), dump) for key, ttl_ms, dump in dumps if dump is not None]
            self.copies.append((self.stored, kept))

    @invariant()
    def redis_holds_what_the_rules_say(self) -> None:
        due = self.call(queue_scripts.list_due, 1)
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.run(RUN)).lrange(keys.stages(RUN), 0, -1).get(keys.lease(RUN))
            pipe.zrange(keys.RUNNING, 0, -1).zcard(keys.THROTTLED).zscore(keys.QUEUE, RUN)
            pipe.hgetall(keys.results(RUN))
            for key in STREAMS.values():
                pipe.xrange(key)
            for key in [*RUN_KEYS, keys.job(RUN), keys.lease(RUN)]:
                pipe.pttl(key)
            record, stage_ids, holder, running, held_back, score, outside, *rest = pipe.execute()
        streams, (record_ttl_ms, *log_ttls_ms, job_ttl_ms, lease_ttl_ms) = rest[: len(STREAMS)], rest[len(STREAMS) :]
        log = [
            (parse_id(id_.decode()), LogEntry(stage_id, fields[b"event"].decode(), fields[b"data"]))
            for stage_id, stream in zip(STREAMS, streams, strict=True)
            for id_, fields in stream
        ]
        held = Stored(
            log=tuple(sorted(log, key=lambda pair: pair[0])), status=RunStatus(record[b"status"].decode()),
            attempt=int(record[b"attempt"]), tries=int(record[b"tries"]), worker=record[b"worker"].decode(),
            is_queued=bool(due.run_ids) or due.next_ms >= 0, is_due=bool(due.run_ids),
            is_cancelled=b"cancel" in record, holder=holder and holder.decode(),
            is_running=MINE.encode() in running, is_throttled=bool(held_back), is_other_running=OTHER.encode() in running,
            decisions=tuple(sorted(orjson.loads(record.get(b"decisions", b"{}")).items())), is_woken=self.stored.is_woken,
            **_read_outside(outside), last_change=self.stored.last_change,
        )  # fmt: skip
        assert held == self.stored
        assert parse_id(record[b"last_id"].decode()) == held.last_id
        assert [stage_id.decode() for stage_id in stage_ids] == held.stage_ids
        assert (b"finished_at" in record) == held.is_ended
        assert (b"parked_at" in record) == (held.status is RunStatus.PARKED), (
            "parked_at is set exactly while the run is parked"
        )
        is_on_its_way = score is None or held.is_throttled or score < LATER_MS
        assert is_on_its_way or not held.is_woken, "a woken parked run is stranded"
        assert is_on_its_way or not held.worker, "a run that names a worker is stranded if that worker dies"
        # Until it is accounted, which happens outside of this model, the record and the job have no TTL.
        assert (record_ttl_ms, job_ttl_ms in (-1, GONE_TTL), lease_ttl_ms != -1) == (-1, True, True)
        log_ttls_ms = [ttl_ms for ttl_ms in log_ttls_ms if ttl_ms != GONE_TTL]
        assert all((0 < ttl_ms <= END.retention_s * 1000) if held.is_ended else ttl_ms == -1 for ttl_ms in log_ttls_ms)

    @invariant()
    def log_is_whole(self) -> None:
        """Checks what readers rely on, after every rule."""
        event_ids = [event_id for event_id, _ in self.stored.log]
        assert [event_id.sequence for event_id in event_ids] == list(range(1, len(event_ids) + 1))
        assert event_ids == sorted(event_ids)
        assert "done" not in [entry.event for _, entry in self.stored.log[:-1]], "nothing follows a terminal event"
        for event_id, entry in self.stored.log:
            assert self.content_by_id.setdefault(event_id, entry.data) == entry.data, "an id has two contents"

    def teardown(self) -> None:
        """Deletes the run in the state in which the interleaving left it: nothing that anyone still sends changes Redis."""
        if not self.stored.is_ended:
            assert self.call(run_deletion.delete_ended, RUN, RunOwner("t")) is False
            claim = self.call(run_scripts.claim, RUN, "")
            end = [LogEntry(RUN_STAGE, "done", b"{}")]
            self.call(
                run_scripts.append, RUN, attempt=claim.attempt, before=claim.last_id, entries=end, message=b"", end=END
            )
        self.client.zrem(keys.ACTIVE, RUN)  # as account does, outside of this model
        assert self.call(run_deletion.delete_ended, RUN, RunOwner("t")) is True
        for worker in self.workers.values():
            token, attempt = worker.token or "none", worker.attempt or 0
            one = {"entries": [LogEntry("extraction", "x", b"{}")], "message": b""}
            assert self.call(run_scripts.append, RUN, attempt=attempt, before=worker.base, **one) is RunEnded
            assert self.call(run_scripts.claim, RUN, "w", token=token) is RunEnded
            assert self.call(run_scripts.cancel, RUN) is RunEnded
            assert self.call(parking.decide, RUN, "c1", "{}") is RunEnded
            lease = {"token": token, "attempt": attempt}
            assert self.call(queue_scripts.renew, RUN, lease_s=LEASE_S, **lease) is None
            assert not self.call(parking.park, RUN, due_ms=LATER_MS, seen=NOTHING, **lease)
            assert self.call(parking.deliver, RUN, REF, "c1", CallResult(content="late")) is RunEnded
            assert self.call(parking.lease_call, RUN, REF, "c1", holder="b", is_once=True) is RunEnded
            assert not self.call(queue_scripts.acquire, RUN, token, LEASE_S, RUNNING_MAX)
            assert not self.call(queue_scripts.finish, RUN, token)
            assert not self.call(queue_scripts.requeue, RUN, b"job")
            self.call(queue_scripts.release, RUN, token=token, attempt=None)
        assert self.client.keys(f"*{RUN}*") == [keys.run(RUN).encode()]
        assert set(self.client.hkeys(keys.run(RUN))) == {b"deleted_of", b"deleted_at"}
        assert self.client.zscore(keys.QUEUE, RUN) is None
        assert MINE.encode() not in self.client.zrange(keys.RUNNING, 0, -1) + self.client.zrange(keys.THROTTLED, 0, -1)


def test_protocol_holds_in_any_interleaving(redis_url: str) -> None:
    with Redis.from_url(redis_url.removesuffix("/0") + "/7") as client:  # a separate database
        LogProtocol.client = client
        run_state_machine_as_test(
            LogProtocol,
            settings=settings(
                max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck),
                backend="hypothesis-urandom",  # by default five of six examples are variants of the previous one
            ),
        )  # fmt: skip
