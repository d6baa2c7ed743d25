"""The calls of a run that wait for a result from outside, read from its log, and the results that they get.

A call can get a result if the log says that it waits, or if its token proves that it has started. The first result is
final.
"""

from collections.abc import Sequence

from stagebus.shared.call_errors import CallHasResult, CallNotFound
from stagebus.shared.domain import call_results
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.events import CallDeferred, StageCompleted
from stagebus.shared.domain.runs import EXTRACTION, TOOLS, RunRecord
from stagebus.shared.log import log_reader
from stagebus.shared.runtime.call_tokens import CallIdentity
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store import parking


async def find(redis: Redis, run_id: str, call_id: str, ref: str | None) -> CallDeferred:
    """Returns a call that waits for a result, or that has waited.

    Args:
        ref: that of the call, if the caller knows it: after a loss of data another call may have the same id.

    Raises:
        CallNotFound: no call of this id has ever waited, or it is another one.
    """
    name = CallDeferred.event.encode()
    for stage_id in await _begun(redis, run_id, TOOLS):
        for event in await log_reader.read_stage(redis, run_id, stage_id):
            if event.event == name:
                call = CallDeferred.model_validate_json(event.data)
                if call.call_id == call_id and ref in (None, call.ref):
                    return call
    raise CallNotFound(run_id, call_id)


async def check_token(redis: Redis, run: RunRecord, call: CallIdentity) -> None:
    """Checks that the model's answer with a token's call is in the log.

    Raises:
        CallNotFound: Redis has lost it since; another answer may have a call of the same id.
    """
    completed = StageCompleted.event.encode()
    ends = await log_reader.read_stage_ends(redis, run.run_id, await _begun(redis, run.run_id, EXTRACTION))
    if not any(last.event == completed and str(last.event_id) == call.ref for _, last in ends):
        raise CallNotFound(run.run_id, call.call_id)


async def give_result(redis: Redis, run_id: str, ref: str, call_id: str, result: CallResult) -> None:
    """Gives a call its result. Repeating the same result changes nothing.

    Raises:
        CallHasResult: the call has another result.
        RunEnded: the run ended without a result, or is gone.
    """
    if await parking.deliver(redis, run_id, ref, call_id, result) != result:
        raise CallHasResult(call_id)


async def without_results(redis: Redis, run_id: str, calls: Sequence[CallDeferred]) -> list[CallDeferred]:
    """Returns those of the calls that have no result yet."""
    if not calls:
        return []
    fields = [call_results.result_field(call.ref, call.call_id) for call in calls]
    results = await redis.hmget(keys.results(run_id), fields)  # type: ignore[misc]
    return [call for call, result in zip(calls, results, strict=True) if result is None]


async def _begun(redis: Redis, run_id: str, kind: str) -> list[str]:
    """Returns the stages of a kind that the run has begun, the last one first."""
    head = await log_reader.read_head(redis, run_id)
    return [stage_id for stage_id in reversed(head.stage_ids) if stage_id.startswith(kind)]
