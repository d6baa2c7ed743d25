"""Sends one message to its receiver: no private address, no redirect, a limit in time and bytes."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Final

import httpx2

from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookTarget
from stagebus.shared.domain.webhook_messages import Delivery
from stagebus.shared.errors import KeyMissing
from stagebus.shared.runtime.net import AddressPolicy
from stagebus.worker.tools.egress import Egress, EgressRefused
from stagebus.worker.webhooks.retry_schedule import ReceiverAnswer
from stagebus.worker.webhooks.webhook_signature import signed_headers

logger = logging.getLogger(__name__)

TRY_MAX_S: Final = 10.0
ANSWER_MAX_BYTES: Final = 64 * 2**10
_HEADERS: Final = {"Content-Type": "application/json", "User-Agent": "stagebus-webhooks"}


class WebhookSender:
    """Sends messages through the guard that tools use, so a receiver's address must be public or allowed."""

    def __init__(self, settings: Settings) -> None:
        self._egress = Egress(AddressPolicy(settings.egress_allow), ANSWER_MAX_BYTES)

    async def send(self, delivery: Delivery, target: WebhookTarget) -> ReceiverAnswer:
        """Sends the message once. The answer's status decides; its body is read, up to a limit, and dropped."""
        try:
            return await self._post(delivery, target)
        except TimeoutError:
            return ReceiverAnswer(error=f"no answer within {TRY_MAX_S:g} s")
        except KeyMissing as exc:
            logger.warning("webhook endpoint %s: %s", delivery.endpoint, exc)
            return ReceiverAnswer(error="the secret is missing or malformed; see the worker's log")
        except EgressRefused as exc:
            return ReceiverAnswer(error=str(exc))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as exc:
            # Its text may contain an address of the network.
            return ReceiverAnswer(error=f"no answer ({type(exc).__name__})")

    async def _post(self, delivery: Delivery, target: WebhookTarget) -> ReceiverAnswer:
        headers = signed_headers(target.signing.read_keys(), delivery.webhook_id, int(time.time()), delivery.body)
        async with self._egress.client([target.url], timeout_s=TRY_MAX_S, takes_compressed=True) as client:
            request = client.build_request("POST", target.url, content=delivery.body, headers={**_HEADERS, **headers})
            async with asyncio.timeout(TRY_MAX_S):
                response = await client.send(request, stream=True, follow_redirects=False)
            try:
                # Whatever a receiver does after its status, it has taken the message or not.
                with suppress(httpx2.HTTPError, TimeoutError):
                    await _drop_body(response)
                return ReceiverAnswer(response.status_code, retry_after=response.headers.get("Retry-After", ""))
            finally:
                await response.aclose()


DROP_MAX_S: Final = 1.0


async def _drop_body(response: httpx2.Response) -> None:
    async with asyncio.timeout(DROP_MAX_S):
        async for _ in response.aiter_raw():
            pass
