"""The names of the keys of webhook deliveries. On a cluster all of them are in one partition, so that one script may name several."""

from dataclasses import dataclass

from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import Partition, partitioning_of


@dataclass(frozen=True, slots=True)
class WebhookKeys:
    """The key names of the deliveries, in their partition."""

    partition: Partition

    @property
    def endpoints(self) -> str:
        """The hash of the numbers of open deliveries by endpoint."""
        return keys.tagged(keys.WEBHOOK_ENDPOINTS, self.partition.tag)

    @property
    def gone(self) -> str:
        """The hash of the URLs of endpoints that answered 410."""
        return keys.tagged(keys.WEBHOOK_GONE, self.partition.tag)

    @property
    def bell(self) -> str:
        """The list that wakes a worker when a delivery is due."""
        return self.partition.outbox_bell

    def delivery(self, delivery_id: str) -> str:
        """Returns the hash of a delivery."""
        return keys.webhook_delivery(delivery_id, self.partition.tag)

    def open(self, endpoint: str) -> str:
        """Returns the set of an endpoint's open deliveries by creation."""
        return keys.webhook_open(endpoint, self.partition.tag)

    def due(self, endpoint: str) -> str:
        """Returns the set of an endpoint's open deliveries by their next try."""
        return keys.webhook_due(endpoint, self.partition.tag)

    def trying(self, endpoint: str) -> str:
        """Returns the set of an endpoint's deliveries that are being sent."""
        return keys.webhook_trying(endpoint, self.partition.tag)

    def ended(self, state: str) -> str:
        """Returns the set of the deliveries that ended in a state."""
        return keys.webhook_ended(state, self.partition.tag)


def webhook_keys_of(connection: object) -> WebhookKeys:
    """Returns the keys of the deliveries in the system that a client leads to."""
    return WebhookKeys(partitioning_of(connection).of_name("webhooks"))
