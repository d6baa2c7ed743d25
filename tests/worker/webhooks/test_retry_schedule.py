"""The step that follows a try of a delivery."""

import pytest

from stagebus.shared.domain.webhook_messages import Delivery, DeliveryState
from stagebus.worker.webhooks.retry_schedule import BACKOFFS_S, LIFE_S, RETRY_AFTER_MAX_S, ReceiverAnswer, result_of


def delivery(tries: int) -> Delivery:
    state = DeliveryState.WAITING
    return Delivery("d", "billing", "msg_d", "run.ended", "r", "t", "", b"{}", state, 1, 1, tries)


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_any_success_delivers(status: int) -> None:
    assert result_of(delivery(0), ReceiverAnswer(status), 0, 0.5).state is DeliveryState.DELIVERED


@pytest.mark.parametrize("status", [0, 100, 199, 300, 301, 307, 400, 401, 404, 429, 500, 503, 999])
def test_anything_else_is_tried_again(status: int) -> None:
    """A redirect, too, which is not followed."""
    result = result_of(delivery(0), ReceiverAnswer(status, "no answer" if not status else ""), 0, 1.0)

    assert (result.state, result.delay_s) == (DeliveryState.WAITING, BACKOFFS_S[0])
    assert result.error == ("no answer" if not status else f"status {status}")


def test_waits_grow_and_end_within_a_day() -> None:
    age_s, waits = 0.0, []
    for tries in range(len(BACKOFFS_S) + 1):
        result = result_of(delivery(tries), ReceiverAnswer(500), age_s, 1.0)
        if result.state is DeliveryState.FAILED:
            break
        waits.append(result.delay_s)
        age_s += result.delay_s

    assert tuple(waits) == BACKOFFS_S
    assert age_s <= LIFE_S


def test_jitter_shortens_a_wait_a_little() -> None:
    assert result_of(delivery(3), ReceiverAnswer(500), 0, 0.0).delay_s == pytest.approx(BACKOFFS_S[3] * 0.8)


def test_no_try_comes_after_a_day() -> None:
    """Retry-After made the waits longer."""
    assert result_of(delivery(5), ReceiverAnswer(500), LIFE_S - 60, 0.5).state is DeliveryState.FAILED


@pytest.mark.parametrize(
    ("status", "header", "delay_s"),
    [
        (429, "120", 120), (503, "120", 120), (503, "1", BACKOFFS_S[0]), (429, "999999", RETRY_AFTER_MAX_S),
        (500, "120", BACKOFFS_S[0]), (429, "-5", BACKOFFS_S[0]), (429, "soon", BACKOFFS_S[0]),
        (429, "9" * 5000, BACKOFFS_S[0]), (503, "Wed, 21 Oct 2015 07:28:00 GMT", BACKOFFS_S[0]),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_within_limits(status: int, header: str, delay_s: float) -> None:
    assert result_of(delivery(0), ReceiverAnswer(status, retry_after=header), 0, 1.0).delay_s == delay_s


def test_gone_fails_at_once() -> None:
    assert result_of(delivery(0), ReceiverAnswer(410), 0, 0.5).state is DeliveryState.FAILED
