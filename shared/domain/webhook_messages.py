"""Webhooks: the entries of the outbox, the messages made from them, and their deliveries.

    {"type": "run.ended", "timestamp": "2026-03-01T12:00:00.123Z",
     "data": {"run_id": "01J…", "tenant": "acme", "status": "succeeded", "event_id": "5204-118", "at": 1772366400123}}

A message has no text of users: a receiver reads the run. Its id is that of the event that it tells of, and the same in
every try.
Spec: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

import orjson


class WebhookType(StrEnum):
    """The kinds of messages."""

    RUN_ENDED = "run.ended"
    RUN_WAITING = "run.waiting"
    CALL_DEFERRED = "call.deferred"


TEST_TYPE: Final = "webhook.test"  # sent at an operator's request only
# The endpoints of the runs' own URLs, one for each origin: `run-url https://app.example`.
RUN_URL_PREFIX: Final = "run-url "


class DeliveryState(StrEnum):
    """The state of a delivery."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One change of a run, as a script wrote it; `message` is unique to the event."""

    message: str
    type: str
    tenant: str
    webhook_url: str
    data: Mapping[str, Any]

    @classmethod
    def decode(cls, fields: Sequence[bytes]) -> Self:
        """Decodes an entry of the stream.

        Raises:
            ValueError, KeyError: it is malformed.
        """
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        text = {name: named[name.encode()].decode() for name in ("message", "type", "tenant", "webhook_url")}
        data = orjson.loads(named[b"data"])
        if not isinstance(data, dict):
            raise ValueError("the data of an entry is an object")  # noqa: TRY004 - as for all malformed entries
        return cls(data=data, **text)

    @property
    def webhook_id(self) -> str:
        """Returns the header `webhook-id`."""
        return f"msg_{self.message}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to one endpoint. Times are Unix ms by Redis's clock; 0: not yet.

    Attributes:
        url: of a run's own webhook; empty for an endpoint of the file, whose URL may change.
        tries: completed ones, since the creation or the last `resend`.
        since: when the time for all tries began.
        last_status: the HTTP status of the last answer; 0 if there was none.
        last_error: the reason for the last failure, a code or a short text.
    """

    delivery_id: str
    endpoint: str
    webhook_id: str
    type: str
    run_id: str
    tenant: str
    url: str
    body: bytes
    state: DeliveryState
    created_at: int
    since: int
    tries: int = 0
    last_status: int = 0
    last_error: str = ""
    ended_at: int = 0

    @classmethod
    def decode(cls, delivery_id: str, fields: Mapping[bytes, bytes]) -> Self | None:
        """Decodes the fields of its hash; None if there is no such delivery."""
        if b"body" not in fields:
            return None

        def text(name: str) -> str:
            return fields.get(name.encode(), b"").decode()

        def number(name: str) -> int:
            return int(fields.get(name.encode(), b"") or 0)

        return cls(
            delivery_id, text("endpoint"), text("webhook_id"), text("type"), text("run_id"), text("tenant"),
            text("url"), fields[b"body"], DeliveryState(text("state")), number("created_at"), number("since"),
            number("tries"), number("last_status"), text("last_error"), number("ended_at"),
        )  # fmt: skip


def delivery_id_of(message: str, endpoint: str) -> str:
    """Returns the id of the delivery of a message to an endpoint; safe in a URL's path."""
    if endpoint.startswith(RUN_URL_PREFIX):  # names of endpoints have no dot
        endpoint = "url." + endpoint.removeprefix(RUN_URL_PREFIX).replace("://", "-").replace(":", "-")
    return f"{message}.{endpoint}"
