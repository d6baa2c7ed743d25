"""The log of an outage of Redis: two lines for the whole process."""

import logging

import pytest

from stagebus.shared.storage.outage_log import SETTLE_S, SILENCE_S, OutageLog
from tests.support.fake_time import FakeTime

logger = logging.getLogger("test")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):
    """Return a function that returns the levels logged since its last call."""
    caplog.set_level(logging.INFO)

    def levels() -> list[str]:
        found = [record.levelname for record in caplog.records]
        caplog.clear()
        return found

    return levels


def outage(clock: FakeTime) -> OutageLog:
    return OutageLog(lambda: clock.now)


def test_outage_warns_once_and_ends_once(said) -> None:
    clock = FakeTime()
    log = outage(clock)
    for _ in range(3):
        log.report_failure(logger, "a run", OSError("down"))
        clock.now += 1
    assert said() == ["WARNING"]
    log.report_recovery(logger, "a run")
    log.report_recovery(logger, "another run")
    assert said() == ["INFO"]


def test_late_failure_is_no_new_outage(said) -> None:
    """It was under way when Redis came back."""
    clock = FakeTime()
    log = outage(clock)
    log.report_failure(logger, "a run", OSError("down"))
    log.report_recovery(logger, "a run")
    said()
    clock.now += SETTLE_S - 1
    log.report_failure(logger, "another run", OSError("down"))
    assert said() == []
    clock.now += 1
    log.report_failure(logger, "another run", OSError("down"))
    assert said() == ["WARNING"]


def test_outage_that_nobody_ended_is_over_after_a_while(said) -> None:
    """Such as one that only requests noticed: nothing waits for the next success."""
    clock = FakeTime()
    log = outage(clock)
    log.report_failure(logger, "a request", OSError("full"))
    clock.now += SILENCE_S - 1
    log.report_failure(logger, "a request", OSError("full"))
    clock.now += SILENCE_S
    log.report_failure(logger, "a request", OSError("full"))

    assert said() == ["WARNING", "WARNING"]
