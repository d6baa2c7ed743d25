"""Deliveries of webhooks."""

from typing import Self

from pydantic import Field

from stagebus.gateway.api.schemas.answers import Answer
from stagebus.shared.domain.webhook_messages import Delivery, DeliveryState


class DeliveryView(Answer):
    """A message on its way to one endpoint. Times are Unix ms by Redis's clock."""

    id: str = Field(description="the delivery")
    webhook_id: str = Field(description="the message's id, the same in every try")
    endpoint: str = Field(description="the endpoint's name in the webhooks file, or `run-url` and the origin")
    type: str = Field(description="run.ended, run.waiting, call.deferred or webhook.test")
    tenant: str = Field(description="the run's tenant")
    run_id: str = Field(description="the run that it tells of; empty for a test")
    state: DeliveryState = Field(description="waiting for its next try, delivered, or failed for good")
    tries: int = Field(description="completed tries since the creation or the last time that it was sent again")
    last_status: int | None = Field(default=None, description="the HTTP status of the last answer")
    last_error: str | None = Field(default=None, description="why the last try failed")
    created_at: int = Field(description="when it was created")
    ended_at: int | None = Field(default=None, description="when it was delivered or failed")

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Describes a delivery."""
        return cls(
            id=delivery.delivery_id,
            webhook_id=delivery.webhook_id,
            endpoint=delivery.endpoint,
            type=delivery.type,
            tenant=delivery.tenant,
            run_id=delivery.run_id,
            state=delivery.state,
            tries=delivery.tries,
            last_status=delivery.last_status or None,
            last_error=delivery.last_error or None,
            created_at=delivery.created_at,
            ended_at=delivery.ended_at or None,
        )


class DeliveryList(Answer):
    """A page of deliveries, newest first."""

    deliveries: list[DeliveryView] = Field(description="the deliveries")
    next: str | None = Field(default=None, description="`before` of the next page, if there is one")
