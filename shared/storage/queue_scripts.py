"""The Lua scripts of the queue, its leases and its limits as typed functions: one script, one verb, one function.

As in `run_scripts`, all are safe to repeat.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId, parse_id
from stagebus.shared.domain.limits import DAY_MS, tokens_ttl_ms
from stagebus.shared.errors import Fenced, RunEnded
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.partition_keys import UNTAGGED, Partition, partition_of_run

_ACCOUNT = Script("account")
_ACQUIRE = Script("acquire", uses=("tenant_limit",))
_ADMIT = Script("admit", uses=("tenant_limit",))
_FINISH = Script("finish")
_KEEP_ACTIVE = Script("keep_active")
_LIST_DUE = Script("list_due")
_RELEASE = Script("release")
_RENEW = Script("renew")
_REQUEUE = Script("requeue")
_RESERVE = Script("reserve", uses=("tenant_limit", "tokens_left"))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class DueRuns(NamedTuple):
    """Runs that a worker may acquire now.

    Attributes:
        next_ms: until the next run is due; -1: no run waits.
        lags: of each run, by how much its virtual time is ahead of its partition's; -1 if it has begun. Runs of several
            partitions are compared by them. All 0 if they were not asked for.
    """

    run_ids: list[str]
    next_ms: int
    lags: list[int]


async def list_due(connection: ScriptConnection, limit: int, partition: Partition = UNTAGGED) -> DueRuns:
    """Returns at most `limit` runs of a partition that are due. Runs with a current lease are not due."""
    next_ms, *run_ids = await _LIST_DUE(connection, [partition.queue], [limit, keys.TIME_SCORE_MIN])
    return DueRuns([run_id.decode() for run_id in run_ids], int(next_ms), [0] * len(run_ids))


async def list_due_with_lags(connection: ScriptConnection, limit: int, partition: Partition) -> DueRuns:
    """Returns the same with the lags of the runs."""
    key_list = [partition.queue, partition.virtual_time]
    next_ms, *found = await _LIST_DUE(connection, key_list, [limit, keys.TIME_SCORE_MIN])
    return DueRuns([run_id.decode() for run_id in found[::2]], int(next_ms), [int(lag) for lag in found[1::2]])


async def acquire(connection: ScriptConnection, run_id: str, token: str, lease_s: float, running_max: int = 0) -> bool:
    """Acquires the lease of a due run.

    Args:
        running_max: how many runs a tenant without its own limit may have running; 0: any number.

    Returns:
        False if the run is gone, not due, held by another token, or throttled by its tenant's limit.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.queue, part.lease(run_id), keys.run(run_id), part.running, part.throttled, part.virtual_time]
    args = [run_id, token, _ms(lease_s), running_max, keys.TIME_SCORE_MIN, keys.THROTTLED_SCORE, part.limits]
    return bool(await _ACQUIRE(connection, key_list, args))


async def admit(
    connection: ScriptConnection, run_id: str, running_max: int = 0, *, tenant: str = "", has_ended: bool = False
) -> int:
    """Removes a run from its tenant's running ones and makes throttled runs due in its place.

    Args:
        running_max: as in `acquire`.
        tenant: the run's tenant, needed if the record may be gone.
        has_ended: the run cannot continue. Without it, a run that another worker has acquired still counts as running.

    Returns:
        How many throttled runs were admitted.
    """
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), part.queue, part.running, part.throttled, part.virtual_time, part.wakeup]
    key_list += [] if has_ended else [part.lease(run_id)]
    return int(await _ADMIT(connection, key_list, [run_id, tenant, running_max, keys.WAKEUPS_MAX, part.limits]))


MINUTE_MS: Final = 60_000
# Twice the hour that is shown.
MINUTE_TOTALS_TTL_MS: Final = 120 * MINUTE_MS


class EndedRun(NamedTuple):
    """A run's result for the totals; `at` in Unix ms by Redis's clock. The default is a run whose record is gone."""

    status: str = ""
    at: int = 0
    events: int = 0
    tokens: int = 0


async def account(
    connection: ScriptConnection,
    run_id: str,
    *,
    tenant: str,
    ended: EndedRun,
    retention_s: float,
    life_s: float,
    run_keys: Sequence[str] = (),
) -> bool:
    """Removes an ended run from the active ones, adds it to the totals, and settles its tokens.

    Its reservation is released and its used tokens are counted for its tenant, in one step.

    Args:
        retention_s: how long the keys live after the run's end.
        life_s: the TTL of the tenant's lists.
        run_keys: every key that the run may have.

    Returns:
        False if the run was accounted before.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.active, part.active_of_tenant(tenant), part.tokens(tenant), part.totals]
    key_list += [part.totals_of_minute(ended.at // MINUTE_MS), part.reserved]
    args = [run_id, ended.at // DAY_MS, ended.tokens, tokens_ttl_ms(life_s), ended.status, ended.events]
    args += [ended.at, _ms(retention_s), tenant, MINUTE_TOTALS_TTL_MS]
    return bool(await _ACCOUNT(connection, [*key_list, *run_keys], args))


class Renewal(NamedTuple):
    """The reply of a renewal. It reaches a worker even while a tool appends nothing."""

    cancel: bool
    last_id: EventId


async def renew(
    connection: ScriptConnection,
    run_id: str,
    *,
    token: str,
    attempt: int,
    lease_s: float,
) -> Renewal | None:
    """Renews the lease.

    Returns:
        None if the lease is lost: another attempt owns the run, or it has ended.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.queue, part.lease(run_id), keys.run(run_id)]
    match await _RENEW(connection, key_list, [run_id, token, attempt, _ms(lease_s)]):
        case [b"ok", cancel, last_id]:
            return Renewal(cancel == b"1", parse_id(last_id.decode()))
        case _:
            return None


async def release(
    connection: ScriptConnection, run_id: str, *, token: str, attempt: int | None, delay_s: float = 0
) -> bool:
    """Gives an unfinished run back, due after `delay_s`.

    Returns:
        False if another token holds the run.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.queue, part.lease(run_id), keys.run(run_id), part.wakeup]
    args = [run_id, token, "" if attempt is None else attempt, _ms(delay_s), int(delay_s == 0), keys.WAKEUPS_MAX]
    return bool(await _RELEASE(connection, key_list, args))


async def finish(connection: ScriptConnection, run_id: str, token: str) -> bool:
    """Removes the job of an ended run from the queue.

    Returns:
        False if `token` no longer holds the lease.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.queue, part.lease(run_id), part.job(run_id), part.arq_retry(run_id)]
    return bool(await _FINISH(connection, key_list, [run_id, token]))


async def requeue(connection: ScriptConnection, run_id: str, job: bytes, thread_key: str = "") -> bool:
    """Ensures that the run has a job and an entry in the queue, unless it has ended.

    Args:
        thread_key: the run's thread; a run that waits for its turn there does not become due.

    Returns:
        True if the queue had no entry for it and has one now.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.queue, part.job(run_id), part.wakeup, keys.run(run_id), *([thread_key] if thread_key else [])]
    return bool(await _REQUEUE(connection, key_list, [run_id, job, keys.WAKEUPS_MAX, keys.THROTTLED_SCORE]))


async def keep_active(
    connection: ScriptConnection, run_id: str, *, tenant: str, life_s: float, other_keys: Sequence[str], user: str = ""
) -> bool:
    """Keeps an active run in its tenant's and its user's lists for another `life_s`, and removes the TTLs of its keys.

    Args:
        other_keys: the run's keys except its record.

    Returns:
        False if the run has ended.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.active, keys.run(run_id), part.runs(tenant), part.active_of_tenant(tenant)]
    key_list += [part.tokens(tenant), part.runs(tenant, user), *other_keys]
    args = [run_id, ids.created_ms(run_id), _ms(life_s), tokens_ttl_ms(life_s)]
    return bool(await _KEEP_ACTIVE(connection, key_list, args))


class Reservation(NamedTuple):
    """The tokens reserved for a run in total, and its tenant's limit per day; 0: none."""

    tokens: int
    limit: int


async def reserve(
    connection: ScriptConnection,
    run_id: str,
    *,
    tenant: str,
    attempt: int,
    wanted: int,
    tokens_per_day: int,
    life_s: float,
) -> Reservation:
    """Reserves further tokens of its tenant's day for a run, as far as the tenant's limit allows.

    Args:
        wanted: how many tokens the run wants to have reserved in total.
        tokens_per_day: the limit of a tenant without its own.
        life_s: the TTL of the tenant's lists.

    Raises:
        Fenced: another attempt owns the run.
        RunEnded: the run has ended or is gone.
    """
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), part.tokens(tenant), part.reserved]
    args = [run_id, tenant, attempt, wanted, tokens_per_day, tokens_ttl_ms(life_s), part.limits]
    match await _RESERVE(connection, key_list, args):
        case [b"ok", tokens, limit]:
            return Reservation(tokens, limit)
        case [b"fenced", _]:
            raise Fenced(run_id, attempt)
        case _:
            raise RunEnded(run_id)
