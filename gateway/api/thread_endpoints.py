"""Threads: list, read, describe, delete."""

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS, read_json
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import accepts, limit_parameter, read_limit
from stagebus.gateway.api.responses import JSON, json_response
from stagebus.gateway.api.schemas.thread_answers import ThreadList, ThreadSummary, ThreadView, encode_thread
from stagebus.gateway.api.schemas.thread_change import ThreadChange
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.gateway.api.thread_markdown import MARKDOWN, render_markdown
from stagebus.gateway.api.thread_params import (
    BEFORE_THREAD,
    BRANCH_PARAMETERS,
    THREAD_FILTERS,
    THREAD_ID,
    THREAD_USER,
    read_before_thread,
    read_branch,
    read_thread_filter,
    read_thread_identity,
)
from stagebus.gateway.api.urls import urls_of
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import InvalidRequest, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import thread_branch, thread_deletion, thread_list, thread_store
from stagebus.shared.thread_errors import ThreadNotFound

LIST_LIMIT_DEFAULT: Final = 20
LIST_LIMIT_MAX: Final = 100
BRANCH_LIMIT_DEFAULT: Final = 50
BRANCH_LIMIT_MAX: Final = 200
DELETION_WAIT_S: Final = 10.0


async def list_threads(request: Request) -> Response:
    """List threads, the last active first.

    A thread is listed if it matches every given filter. Pass the `next` of a page as `before` to get the page after it.
    """
    limit = read_limit(request, LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)
    before, wanted = read_before_thread(request), read_thread_filter(request)
    with storage_errors():
        page = await thread_list.list_threads(
            gateway_of(request).redis, principal_of(request).tenant, limit, before, wanted
        )
    urls, user = urls_of(request), principal_of(request).user
    return json_response(
        ThreadList(threads=[ThreadSummary.of(one, urls, user) for one in page.threads], next=page.next)
    )


async def get_thread(request: Request) -> Response:
    """Get a thread: its turns, which form a tree, the runs that wait, and the messages of one branch.

    The messages are those of the current branch unless `branch` names another one, and come in pages from the newest turn
    back. With `Accept: text/markdown` the response is a transcript of that page for people.
    """
    redis = gateway_of(request).redis
    limit = read_limit(request, BRANCH_LIMIT_DEFAULT, BRANCH_LIMIT_MAX)
    branch, before = read_branch(request)
    with storage_errors():
        thread = await thread_store.read_thread(redis, read_thread_identity(request))
        if thread.is_deleting:
            raise ThreadNotFound(thread.identity.thread_id)
        run_ids = {turn.run_id for turn in thread.turns}
        unknown = [
            (name, "the thread has no turn of this run")
            for name, run_id in (("branch", branch), ("before", before))
            if run_id is not None and run_id not in run_ids
        ]
        if unknown:
            raise invalid_fields(unknown)
        page = await thread_branch.read_branch(redis, thread, branch or thread.head_run_id, limit, before)
    if accepts(request, MARKDOWN):
        return Response(await render_markdown(thread, page), media_type=MARKDOWN)
    view = ThreadView.of_thread(thread, page, urls_of(request), principal_of(request).user)
    return Response(encode_thread(view, page), media_type=JSON)


async def change_thread(request: Request) -> Response:
    """Set a thread's title and metadata.

    It is no activity: the thread keeps its place in lists.
    """
    gateway = gateway_of(request)
    body = await read_json(request, gateway.settings.body_max_bytes)
    change = parse_form(ThreadChange, body)
    given = change.model_fields_set
    with storage_errors():
        thread = await thread_list.describe_thread(
            gateway.redis,
            read_thread_identity(request),
            title=(change.title or "") if "title" in given else None,
            metadata=(change.metadata or {}) if "metadata" in given else None,
        )
    return json_response(ThreadSummary.of(thread, urls_of(request), principal_of(request).user))


async def delete_thread(request: Request) -> Response:
    """Delete a thread with all its runs and everything that is stored of them.

    Runs that have not ended are cancelled first. From then on the thread does not exist (404), and its id stands for a new
    one. The deletion of many runs takes a while: then the answer is 202, and the rest follows by itself.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    identity = read_thread_identity(request)
    status = 204
    try:
        async with asyncio.timeout(DELETION_WAIT_S):
            with storage_errors():  # not around the timeout: a TimeoutError counts as an error of Redis
                await thread_deletion.delete_thread(gateway.redis, gateway.settings, identity)
    except TimeoutError:
        status = 202  # the thread is marked, so the sweep goes on
    gateway.auth.revocations.forget(keys.thread(identity))
    audit("thread.delete", subject=principal.subject, tenant=principal.tenant, thread=identity.thread_id)
    return Response(status_code=status)


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/threads", list_threads, needs(Scope.RUNS_READ),
        {200: ResponseSpec.json("A page of threads.", ThreadList)},
        [
            limit_parameter("The maximum number of threads.", LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX),
            BEFORE_THREAD, *THREAD_FILTERS,
        ],
        errors=[InvalidRequest, StorageUnavailable],
    ),
    Endpoint(
        "GET", "/threads/{thread_id}", get_thread, needs(Scope.RUNS_READ, takes_ticket=True),
        {200: ResponseSpec(
            "The thread. With `Accept: text/markdown` a transcript of the branch.",
            {JSON: ThreadView, MARKDOWN: {"type": "string"}},
        )},
        [
            THREAD_ID, THREAD_USER,
            limit_parameter("The maximum number of turns with messages.", BRANCH_LIMIT_DEFAULT, BRANCH_LIMIT_MAX),
            *BRANCH_PARAMETERS,
        ],
        errors=[ThreadNotFound, InvalidRequest, StorageUnavailable],
    ),
    Endpoint(
        "PATCH", "/threads/{thread_id}", change_thread, needs(Scope.RUNS_WRITE),
        {200: ResponseSpec.json("The thread as it is now.", ThreadSummary)},
        [THREAD_ID, THREAD_USER], ThreadChange, errors=[*BODY_ERRORS, ThreadNotFound, StorageUnavailable],
    ),
    Endpoint(
        "DELETE", "/threads/{thread_id}", delete_thread, needs(Scope.RUNS_CANCEL),
        {
            204: ResponseSpec("The thread is deleted."),
            202: ResponseSpec("The thread is being deleted; `POST /runs` answers 409 `thread_deleting` until that is done."),
        },
        [THREAD_ID, THREAD_USER], errors=[ThreadNotFound, InvalidRequest, StorageUnavailable],
    ),
)  # fmt: skip
