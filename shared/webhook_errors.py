"""Errors about webhooks."""

from stagebus.shared.errors import StagebusError


class BadWebhooks(StagebusError):
    """The webhooks file is invalid. The process does not start."""

    code = "bad_webhooks"
    title = "Bad webhooks file"


class DeliveryNotFound(StagebusError):
    """There is no such webhook delivery, or it is no longer kept."""

    code = "delivery_not_found"
    title = "Delivery not found"
    status_hint = 404

    def __init__(self, delivery_id: str) -> None:
        found = "GET /webhooks/deliveries lists those that are kept"
        super().__init__(f"there is no webhook delivery {delivery_id[:160]!r}, or it is no longer kept: {found}")


class EndpointNotFound(StagebusError):
    """The webhooks file has no such endpoint."""

    code = "endpoint_not_found"
    title = "Endpoint not found"
    status_hint = 404

    def __init__(self, endpoint: str) -> None:
        super().__init__(f"the webhooks file has no endpoint {endpoint[:64]!r}")
