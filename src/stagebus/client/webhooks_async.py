"""The deliveries of webhooks, for asyncio."""

from typing import TYPE_CHECKING

from stagebus.client import api_requests
from stagebus.client.api_requests import Json

if TYPE_CHECKING:
    from stagebus.client.asynchronous import AsyncStagebus


class AsyncWebhooks:
    """The deliveries of webhooks; for operators, with the scope `admin`."""

    def __init__(self, client: "AsyncStagebus") -> None:
        self._client = client

    async def deliveries(
        self, *, state: str | None = None, endpoint: str | None = None, limit: int = 20, before: str | None = None
    ) -> Json:
        """List deliveries, newest first, as `deliveries` and `next`. Pass `next` as `before` for the next page."""
        return await self._client.send(api_requests.list_deliveries(state, endpoint, limit, before))

    async def resend(self, delivery_id: str) -> Json:
        """Send a delivery again, now, and return it.

        Raises:
            NotFound: there is no such delivery, or it is no longer kept.
        """
        return await self._client.send(api_requests.resend_delivery(delivery_id))
