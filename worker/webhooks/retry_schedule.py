"""Decides what follows a try of a delivery. Sans-IO."""

import re
from typing import Final, NamedTuple

from stagebus.shared.domain.webhook_messages import Delivery, DeliveryState
from stagebus.shared.store.webhook_deliveries import TryResult

# The waits after each failed try, before jitter; less than LIFE_S together.
BACKOFFS_S: Final = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800)
JITTER_MIN: Final = 0.8  # a wait is at least this part of its time
LIFE_S: Final = 86_400
RETRY_AFTER_MAX_S: Final = 3600
GONE: Final = 410
_ASKS_FOR_TIME: Final = frozenset({429, 503})
_OK: Final = range(200, 300)
_SECONDS: Final = re.compile(r"\d{1,9}")


class ReceiverAnswer(NamedTuple):
    """The receiver's answer to a try; status 0 and an error if there was none."""

    status: int = 0
    error: str = ""
    retry_after: str = ""


def result_of(delivery: Delivery, answer: ReceiverAnswer, age_s: float, jitter: float) -> TryResult:
    """Returns the result of the try, and when the next one is.

    Args:
        age_s: how long the delivery has been tried.
        jitter: a random number from 0 to 1.
    """
    if answer.status in _OK:
        return TryResult(DeliveryState.DELIVERED, answer.status)
    error = answer.error or f"status {answer.status}"
    if answer.status == GONE:
        return TryResult(DeliveryState.FAILED, answer.status, "the receiver answered 410 Gone")
    if delivery.tries >= len(BACKOFFS_S):
        return TryResult(DeliveryState.FAILED, answer.status, error)
    delay_s = BACKOFFS_S[delivery.tries] * (JITTER_MIN + (1 - JITTER_MIN) * jitter)
    if answer.status in _ASKS_FOR_TIME and _SECONDS.fullmatch(answer.retry_after):
        delay_s = max(delay_s, min(int(answer.retry_after), RETRY_AFTER_MAX_S))
    if age_s + delay_s > LIFE_S:
        return TryResult(DeliveryState.FAILED, answer.status, error)
    return TryResult(DeliveryState.WAITING, answer.status, error, delay_s)
