"""Signs messages by the Standard Webhooks specification.

    webhook-id: msg_01J…_5204_118_run.ended
    webhook-timestamp: 1772366400
    webhook-signature: v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=

Spec: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#signature-scheme
"""

import base64
import hmac
from collections.abc import Iterable


def signed_headers(signing_keys: Iterable[bytes], webhook_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Returns the headers of a message, with a signature for each key."""
    signed = b"%b.%d.%b" % (webhook_id.encode(), timestamp_s, body)
    signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in signing_keys]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
