"""Deliveries of webhooks: list them, send one again."""

import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ParameterSpec, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import limit_parameter, read_limit
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.delivery_list import DeliveryList, DeliveryView
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.webhook_messages import DeliveryState
from stagebus.shared.errors import InvalidRequest, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import webhook_deliveries
from stagebus.shared.webhook_errors import DeliveryNotFound

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
_BEFORE: Final = re.compile(r"[0-9]{1,15}:[A-Za-z0-9_.\[\]-]{1,400}")
_DELIVERY_ID: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,400}")
_ENDPOINT_MAX_CHARS: Final = 300


async def list_deliveries(request: Request) -> Response:
    """List the deliveries of webhooks of all tenants, newest first: open ones by their creation, others by their end.

    Delivered ones are kept for a day, failed ones for a week. A page may be short and still have a `next`.
    """
    state, endpoint, before = (request.query_params.get(name, "") for name in ("state", "endpoint", "before"))
    limit = read_limit(request, LIMIT_DEFAULT, LIMIT_MAX)
    faults = []
    if state and state not in set(DeliveryState):
        faults.append(("state", f"must be {', '.join(DeliveryState)}"))
    if len(endpoint) > _ENDPOINT_MAX_CHARS:
        faults.append(("endpoint", "must be an endpoint's name"))
    if before and not _BEFORE.fullmatch(before):
        faults.append(("before", "must be the `next` of the previous page"))
    if faults:
        raise invalid_fields(faults)
    with storage_errors():
        page = await webhook_deliveries.list_deliveries(
            gateway_of(request).redis, limit, state=DeliveryState(state) if state else None, endpoint=endpoint,
            before=before or None,
        )  # fmt: skip
    return json_response(DeliveryList(deliveries=[DeliveryView.of(one) for one in page.deliveries], next=page.next))


async def resend_delivery(request: Request) -> Response:
    """Send a webhook's delivery again, now, with all its tries before it.

    The message keeps its id, so a receiver that had it already can tell.
    """
    delivery_id = request.path_params["delivery_id"]
    if not _DELIVERY_ID.fullmatch(delivery_id):
        raise DeliveryNotFound(delivery_id)
    redis, principal = gateway_of(request).redis, principal_of(request)
    with storage_errors():
        was = await webhook_deliveries.resend(redis, delivery_id)
        delivery = await webhook_deliveries.read(redis, delivery_id)
    audit("webhook.resend", subject=principal.subject, tenant=principal.tenant, run=was.run_id, delivery=delivery_id)
    return json_response(DeliveryView.of(delivery), 202)


_DELIVERY: Final = ParameterSpec("delivery_id", "path", "The delivery's `id`.", {"type": "string"})

ENDPOINTS: Final = (
    Endpoint(
        "GET", "/webhooks/deliveries", list_deliveries, needs(Scope.ADMIN),
        {200: ResponseSpec.json("A page of deliveries.", DeliveryList)},
        [
            ParameterSpec("state", "query", "Only deliveries in this state.", {"enum": list(DeliveryState)}),
            ParameterSpec("endpoint", "query", "Only those to this endpoint.", {"type": "string"}),
            limit_parameter("The maximum number of deliveries.", LIMIT_DEFAULT, LIMIT_MAX),
            ParameterSpec("before", "query", "The `next` of the previous page.", {"type": "string"}),
        ],
        errors=[InvalidRequest, StorageUnavailable],
    ),
    Endpoint(
        "POST", "/webhooks/deliveries/{delivery_id}/resend", resend_delivery, needs(Scope.ADMIN),
        {202: ResponseSpec.json("The delivery is due.", DeliveryView)},
        [_DELIVERY], errors=[DeliveryNotFound, StorageUnavailable],
    ),
)  # fmt: skip
