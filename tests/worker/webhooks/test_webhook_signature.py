"""Signatures, checked by the library that the specification's authors publish for receivers."""

import base64
import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from stagebus.worker.webhooks.webhook_signature import signed_headers

KEY, OTHER_KEY = b"k" * 24, b"o" * 64


def verify(key: bytes, body: bytes, headers: dict[str, str]) -> None:
    Webhook("whsec_" + base64.b64encode(key).decode()).verify(body, headers)


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_receiver_accepts_a_message_signed_with_either_key(key: bytes) -> None:
    body = '{"type":"run.ended","data":{"user":"Zoë"}}'.encode()

    verify(key, body, signed_headers([KEY, OTHER_KEY], "msg_1_5_2_run.ended", int(time.time()), body))


def test_receiver_rejects_another_body_key_or_time() -> None:
    now = int(time.time())
    headers = signed_headers([KEY], "msg_1", now, b"{}")

    for key, body, sent in (
        (OTHER_KEY, b"{}", headers),
        (KEY, b'{"a":1}', headers),
        (KEY, b"{}", {**headers, "webhook-id": "msg_2"}),
        (KEY, b"{}", signed_headers([KEY], "msg_1", now - 3600, b"{}")),
    ):
        with pytest.raises(WebhookVerificationError):
            verify(key, body, sent)
