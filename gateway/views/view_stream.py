"""The stream of a view, its beginning and its end: what all views share.

    answer_stream   answers a request with a run's messages, from a position on
    fold_run        the log as it is now, for an answer that is no stream or for a position in the messages
    wait_for_end    holds a request until the run has ended

Trouble that passes is an error before a stream begins (503 or 429 with Retry-After). Later it is waited out with pings.
A stream that has to end before the run is torn, since the clients of other protocols take a clean end for success.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.guard import check_run
from stagebus.gateway.api.headers import RUN_ID, SHOWN_RUN
from stagebus.gateway.api.held_request import hold, running_hub
from stagebus.gateway.api.responses import EVENT_STREAM
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming import fold_log
from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.fold import Fold, FoldSource, RunFacts
from stagebus.gateway.streaming.fold_log import FoldedLog
from stagebus.gateway.streaming.folded_view import FoldedView, Voided
from stagebus.gateway.streaming.response import HEADERS, EventStream
from stagebus.shared.access_errors import TooManyStreams
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.errors import Draining, RunNotFound, StorageUnavailable
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import run_store

F = TypeVar("F", bound=Fold)

X_RUN_ID: Final = RUN_ID
# Errors of every endpoint that streams a run.
STREAM_ERRORS: Final = (RunNotFound, TooManyStreams, Draining, StorageUnavailable)


async def get_run(request: Request, run_id: str) -> RunRecord:
    """Reads the record of a run that the caller may see. From now on, the response to the request names the run.

    Raises:
        RunNotFound: the caller has no such run, or its ticket is for another one.
    """
    await check_run(request, run_id)
    with storage_errors():
        run = await run_store.get_run(gateway_of(request).redis, run_id, principal_of(request).owner)
    show_run(request, run_id)
    return run


def show_run(request: Request, run_id: str) -> None:
    """Names the run in the response to the request, whatever that will be."""
    setattr(request.state, SHOWN_RUN, run_id)


def source_of(run: RunRecord, fold: type[F], *options: object) -> FoldSource[F]:
    """Returns the source of a run's folds of one class, see `FoldSource`."""
    return FoldSource(RunFacts.of(run), fold, options)


async def answer_stream(
    request: Request,
    source: FoldSource[Fold],
    *,
    start: FoldedLog[Fold] | None = None,
    opening: bytes = b"",
    voided: Sequence[Voided] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answers with the messages of a fold, then live until the run ends.

    Args:
        start: begin after this part of the log, with its `rest`; None: at the log's start.
        opening: sent before all messages.
        voided: what is left out, see `find_voided`.

    Raises:
        TooManyStreams, Draining: no stream can be opened here now.
    """
    hub = running_hub(request)
    if start is not None and start.is_cut:
        finished = {**HEADERS, "Content-Type": EVENT_STREAM, **(headers or {})}
        return Response(b"".join([opening, *start.rest]), headers=finished)
    fold, position = (None, START) if start is None else (start.fold, start.position)
    view = FoldedView(hub.folds, source, fold=fold, position=position, voided=voided)
    stream = _new_stream(request, view, position)
    stream.subscription.begin_with(b"".join([opening, *(start.rest if start else ())]))
    admission = gateway_of(request).admit_stream(principal_of(request), stream.close)
    # The content type without the charset that Starlette would add: some clients compare the whole value.
    return await EventStream(hub, stream, admission, {"Content-Type": EVENT_STREAM, **(headers or {})}).open()


async def check_admission(request: Request) -> None:
    """Checks that a stream can be opened here now, before the request changes anything.

    Raises:
        TooManyStreams, Draining: it cannot.
    """
    hub, gateway = running_hub(request), gateway_of(request)
    async with gateway.admit_stream(principal_of(request), _do_nothing) as is_admitted:
        hub.check_room(is_admitted=is_admitted)


async def fold_run(request: Request, source: FoldSource[F], until: int | None = None, part: int = 1) -> FoldedLog[F]:
    """Folds the log as it is now, see `fold_log`."""
    return await fold_log.fold_log(gateway_of(request).hub, source, principal_of(request).owner, until, part)


async def fold_to_part(request: Request, source: FoldSource[F], part: int) -> FoldedLog[F] | None:
    """Folds the log up to the beginning of a part, which is the place after an `END`; None for the log's start."""
    return await fold_run(request, source, -1, part) if part > 1 else None


async def find_voided(request: Request, run_id: str) -> list[Voided]:
    """Returns what is void in the log as it is now: a client that cannot take anything back does not get it."""
    return await fold_log.find_voided(gateway_of(request).hub, run_id, principal_of(request).owner)


async def wait_for_end(request: Request, source: FoldSource[F], timeout_s: float | None = None) -> F:
    """Returns a fold of the whole run once it has ended, or of the run so far when the time is over.

    Raises:
        ClientDisconnect: the client has gone. The run continues.
        TooManyStreams, Draining, StorageUnavailable: waiting is not possible here now.
    """
    view = FoldedView(running_hub(request).folds, source, is_whole=True)
    await hold(request, _new_stream(request, view, START), timeout_s)
    return view.fold  # type: ignore[return-value]


async def wait_for_cut(request: Request, source: FoldSource[F], start: FoldedLog[F] | None) -> F:
    """Returns a fold once the part that begins at `start` has ended, with an `END` or with the run.

    The fold may have more, if other clients share it.

    Raises:
        ClientDisconnect, TooManyStreams, Draining, StorageUnavailable: as `wait_for_end`.
    """
    fold, position = (None, START) if start is None else (start.fold, start.position)
    view = FoldedView(running_hub(request).folds, source, fold=fold, position=position)
    await hold(request, _new_stream(request, view, position))
    return view.fold  # type: ignore[return-value]


def _new_stream(request: Request, view: FoldedView, position: EventId) -> ClientStream:
    hub, owner = gateway_of(request).hub, principal_of(request).owner
    return hub.new_stream(view.run_id, position, view, owner=owner, is_strict=True)


def _do_nothing() -> None:
    pass
