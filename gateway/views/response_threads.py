"""`previous_response_id` and `conversation` of the Responses API as threads.

previous_response_id: resp_01J9…   results for its function calls continue run 01J9…; else the turn of run 01J9… is the parent; a run without a thread becomes the first turn of one
conversation: conv_7               the thread of this id, on its current branch
"""

from contextlib import aclosing
from typing import Any, Final, NamedTuple

from starlette.requests import Request

from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.views.chat_threads import thread_id_of
from stagebus.gateway.views.client_results import find_waiting_run, give_results
from stagebus.gateway.views.create_response import trailing_results
from stagebus.gateway.views.response_ids import RESPONSE_PREFIX, parse_part
from stagebus.gateway.views.responses_fold import ResponsesFold
from stagebus.gateway.views.view_stream import fold_run, get_run, source_of
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.threads import ROOT, OnActive
from stagebus.shared.errors import RunNotFound
from stagebus.shared.log.transcript import Transcript, public_messages

Json = dict[str, Any]

PREVIOUS: Final = "previous_response_id"
CONVERSATION: Final = "conversation"


class ContinuedRun(NamedTuple):
    """A run that goes on with the results of its function calls, and the part of it that begins there."""

    run: RunRecord
    part: int


async def continue_run(request: Request, body: Json) -> ContinuedRun | None:
    """Gives a run the results that the request has for its function calls; None if the request is for a new run.

    The calls are those of `previous_response_id`, or those that end an input with the whole conversation.

    Raises:
        InvalidRequest: there is no such response, or the calls of the response need other results.
        ResultTooLarge, CallHasResult, RunEnded: see `give_results`.
    """
    results, is_alone = trailing_results(body.get("input"))
    if (previous := body.get(PREVIOUS)) is None:
        run, part = await find_waiting_run(request, results) if results else None, None
    else:
        run, part = await _find(request, previous)
    if run is None or not run.request.get("client_tools"):
        return None
    calls = (await fold_run(request, source_of(run, ResponsesFold))).fold.calls
    if part is None:
        return ContinuedRun(run, 1 + await give_results(request, run, calls, results, "input"))
    if part > len(calls.points):
        return None
    if not is_alone:
        fault = "must have the outputs of the function calls of the previous response, and nothing else"
        raise invalid_fields([("input", fault)])
    number = await give_results(request, run, calls, results, "input")
    if number != part:
        raise invalid_fields([(PREVIOUS, "the function calls are those of another response")])
    return ContinuedRun(run, 1 + number)


async def thread_fields_of(request: Request, body: Json, messages: list[Json]) -> Json:
    """Returns the fields of `POST /runs` that place a response in a thread; none if the body names no other response.

    Args:
        messages: those of the request.

    Raises:
        InvalidRequest: the body names both, or a response that does not exist or has not ended.
    """
    previous, conversation = body.get(PREVIOUS), body.get(CONVERSATION)
    if previous is not None and conversation is not None:
        raise invalid_fields([(PREVIOUS, "not allowed together with conversation")])
    if conversation is not None:
        named = conversation.get("id") if isinstance(conversation, dict) else conversation
        if not isinstance(named, str) or not named:
            raise invalid_fields([(CONVERSATION, "must be an id, or an object with one")])
        return {"thread_id": thread_id_of(named)}
    if previous is None:
        return {}
    run, _ = await _find(request, previous)
    if not run.is_terminal:
        raise invalid_fields([(PREVIOUS, "this response has not ended")])
    # Several responses may follow one: each begins a branch, one after the other.
    how = {"on_active": OnActive.ENQUEUE.value}
    if run.thread_id:
        return {"thread_id": run.thread_id, "parent_run_id": run.run_id, **how}
    earlier = [*run.request["messages"], *await _read_result(request, run.run_id)]
    thread_id = f"{RESPONSE_PREFIX}{run.run_id}"
    return {"thread_id": thread_id, "parent_run_id": ROOT, "messages": [*earlier, *messages], **how}


async def _find(request: Request, previous: Any) -> tuple[RunRecord, int]:
    run_id, _, part = str(previous).removeprefix(RESPONSE_PREFIX).partition("_")
    try:
        return await get_run(request, run_id), parse_part(part)
    except RunNotFound:
        raise invalid_fields([(PREVIOUS, "there is no such response")]) from None


async def _read_result(request: Request, run_id: str) -> list[Json]:
    """Returns the messages that a run came to."""
    transcript = Transcript()
    async with aclosing(gateway_of(request).hub.pages(run_id, principal_of(request).owner)) as pages:
        async for page in pages:
            for event in page.events:
                transcript.add(event)
    messages = public_messages(transcript.messages())
    return [{name: value for name, value in message.items() if name != "partial"} for message in messages]
