"""Results of client tools that come by a view's own means: in the client's next request.

    function_call_output {call_id: "01J9….call_0", output: "18 degrees"}     Responses

The ids of calls that a view gives begin with their run's id, so a result names the run that waits for it.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from starlette.requests import Request

from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.client_calls import ClientCalls
from stagebus.gateway.views.view_stream import get_run
from stagebus.shared.call_errors import CallHasResult, ResultTooLarge
from stagebus.shared.domain import run_id_pattern
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import RunEnded, RunNotFound
from stagebus.shared.observability.audit import audit
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import waiting_calls

# Errors of every endpoint that takes results.
RESULT_ERRORS: Final = (CallHasResult, ResultTooLarge, RunEnded)

_CALL_ID: Final = re.compile(rf"({run_id_pattern.PATTERN})\.(.+)", re.DOTALL)


class GivenResult(NamedTuple):
    """The result of a call, which the client knows as `<run id>.<call id>`."""

    call_id: Any
    result: CallResult


async def find_waiting_run(request: Request, given: Sequence[GivenResult]) -> RunRecord | None:
    """Returns the run whose calls all of the results name; None if there is none that the caller may see."""
    named = [_CALL_ID.fullmatch(str(one.call_id)) for one in given]
    run_ids = {match and match[1] for match in named}
    if len(run_ids) != 1 or None in run_ids:
        return None
    try:
        return await get_run(request, str(run_ids.pop()))
    except RunNotFound:
        return None


async def give_results(
    request: Request, run: RunRecord, calls: ClientCalls, given: Sequence[GivenResult], field: str
) -> int:
    """Gives the calls of one point their results. Safe to repeat.

    Args:
        field: the request's field with the results, for errors.

    Returns:
        The number of the point, from 1 on.

    Raises:
        InvalidRequest: the results are not those of one point, or a call that waits gets none.
        ResultTooLarge, CallHasResult, RunEnded: see `waiting_calls.give_result`.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    principal.check(Scope.CALLS)
    limit = gateway.settings.tool_result_max_bytes
    if any(len(one.result.content.encode(errors="replace")) > limit for one in given):
        raise ResultTooLarge(limit)
    results = {str(one.call_id).removeprefix(f"{run.run_id}."): one.result for one in given}
    number = next((at for at in range(len(calls.points), 0, -1) if results.keys() <= calls.points[at - 1].keys()), 0)
    if not number:
        raise invalid_fields([(field, "the run does not wait for the results of these calls")])
    point = calls.points[number - 1]
    with storage_errors():
        left = [call for call_id, call in point.items() if call_id not in results]
        missing = await waiting_calls.without_results(gateway.redis, run.run_id, left)
        if missing:
            names = ", ".join(f"{run.run_id}.{call.call_id}" for call in missing)
            raise invalid_fields([(field, f"calls without a result: {names[:512]}")])
        for call_id, result in results.items():
            await waiting_calls.give_result(gateway.redis, run.run_id, point[call_id].ref, call_id, result)
            audit("call.result", subject=principal.subject, tenant=principal.tenant, run=run.run_id, call=call_id)
    return number
