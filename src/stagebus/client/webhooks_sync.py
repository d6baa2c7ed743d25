"""The deliveries of webhooks, for scripts. Generated from its asynchronous form by make_synchronous.py."""

from typing import TYPE_CHECKING

from stagebus.client import api_requests
from stagebus.client.api_requests import Json

if TYPE_CHECKING:
    from stagebus.client.synchronous import Stagebus


class Webhooks:
    """The deliveries of webhooks; for operators, with the scope `admin`."""

    def __init__(self, client: "Stagebus") -> None:
        self._client = client

    def deliveries(
        self, *, state: str | None = None, endpoint: str | None = None, limit: int = 20, before: str | None = None
    ) -> Json:
        """List deliveries, newest first, as `deliveries` and `next`. Pass `next` as `before` for the next page."""
        return self._client.send(api_requests.list_deliveries(state, endpoint, limit, before))

    def resend(self, delivery_id: str) -> Json:
        """Send a delivery again, now, and return it.

        Raises:
            NotFound: there is no such delivery, or it is no longer kept.
        """
        return self._client.send(api_requests.resend_delivery(delivery_id))
