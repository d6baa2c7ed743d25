"""The creation of a run from a body in the format of `POST /runs`, for every endpoint that creates one."""

from typing import Any, Final

from starlette.requests import Request

from stagebus.gateway.api.params import read_idempotency_key
from stagebus.gateway.api.schemas.create_run import named_tools, parse_create_run, taken_names, thread_of, unknown_tools
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import Gateway, gateway_of
from stagebus.shared.access_errors import TokensUsedUp, TooManyRuns
from stagebus.shared.call_errors import CallsUnavailable
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.errors import BadIdempotencyKey, IdempotencyConflict, RunDeleted, StorageFull, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.observability.spans import current_span
from stagebus.shared.store import run_store, tool_catalog
from stagebus.shared.store.worker_capabilities import CALLS, THREADS
from stagebus.shared.thread_errors import (
    ParentNotEnded,
    ParentNotFound,
    ThreadBusy,
    ThreadDeleting,
    ThreadFull,
    ThreadQueueFull,
    ThreadsUnavailable,
)

# Errors of every endpoint that creates a run, besides those of the body.
CREATION_ERRORS: Final = (
    BadIdempotencyKey, IdempotencyConflict, RunDeleted, TooManyRuns, TokensUsedUp, StorageFull, StorageUnavailable,
    ThreadBusy, ThreadQueueFull, ThreadFull, ThreadDeleting, ParentNotFound, ParentNotEnded, ThreadsUnavailable,
    CallsUnavailable,
)  # fmt: skip


async def create_run(request: Request, body: dict[str, Any], idempotency_key: str | None = None) -> str:
    """Creates a run and queues it, or finds the one that was created under the request's `Idempotency-Key`.

    Args:
        body: in the format of `POST /runs`.
        idempotency_key: None for that of the request's header.

    Returns:
        The run's id.

    Raises:
        InvalidRequest: the body is invalid; the error names its fields.
        BadIdempotencyKey, IdempotencyConflict: the key is invalid, or was used for another request.
        RunDeleted: the key's run was deleted.
        TooManyRuns, TokensUsedUp: the tenant is at its limit.
        CallsUnavailable: not all workers know the client tools or deferred tools that the body names.
        ThreadBusy, ThreadQueueFull, ThreadFull, ThreadDeleting, ParentNotFound, ParentNotEnded, ThreadsUnavailable: the
            thread does not take the run.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    idempotency_key = idempotency_key or read_idempotency_key(request)
    run_request = parse_create_run(body, gateway.settings, gateway.providers)
    _check_webhook_url(gateway, run_request)
    await _check_tools(gateway, run_request)
    thread = thread_of(body, principal.tenant, principal.user, run_request.messages)
    tokens = run_request.estimate_tokens()
    if thread is not None:
        if not await gateway.capabilities.all_have(THREADS):
            raise ThreadsUnavailable
        run_request = run_request.without_messages()
    run_id = await run_store.create_run(
        gateway.redis,
        gateway.settings,
        tenant=principal.tenant,
        user=principal.user,
        model=run_request.model_text,
        request=run_request.model_dump(mode="json"),
        idempotency_key=idempotency_key,
        trace=request.state.trace,
        tokens=tokens,
        thread=thread,
    )
    current_span().set({"stagebus.run.id": run_id})
    audit("run.create", subject=principal.subject, tenant=principal.tenant, run=run_id)
    return run_id


def _check_webhook_url(gateway: Gateway, run_request: RunRequest) -> None:
    """Rejects a webhook whose origin the operator does not allow."""
    url = run_request.webhook_url
    if url is not None and not gateway.webhooks.allows_url(url):
        message = "its origin is not allowed; the operator lists allowed ones as run_urls.origins in the webhooks file"
        raise invalid_fields([("webhook_url", message)])


async def _check_tools(gateway: Gateway, run_request: RunRequest) -> None:
    """Rejects names of tools that no worker has published, definitions under names that one has, and both client tools
    and deferred tools as long as an older worker might execute the run.
    """
    named, defined = named_tools(run_request), [tool.name for tool in run_request.client_tools]
    published = await tool_catalog.find_published(gateway.redis) if named or defined else set()
    if published and (unknown := set(named) - published):
        raise unknown_tools(run_request, unknown)
    if taken := set(defined) & published:
        raise taken_names(run_request, taken)
    if (named or defined) and not await gateway.capabilities.all_have(CALLS):
        deferred = {tool.name for tool in await tool_catalog.read_tools(gateway.redis) if tool.deferred}
        if defined or deferred & set(named):
            raise CallsUnavailable
