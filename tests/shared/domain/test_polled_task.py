"""Tasks at tool servers: their texts, and when they are looked at."""

from stagebus.shared.domain.polled_task import POLL_DEFAULT_S, PolledTask

DAY_MS = 86_400_000
TASK = PolledTask(
    run_id="r", ref="5-1", call_id="c 1", source="s", task_id="t", worker="w", began_at=DAY_MS, expires_at=8 * DAY_MS
)


def wait_s(after_s: float, asked_s: float | None, **more: float) -> float:
    """Returns the seconds until the next look at a task that began some time ago."""
    now_ms = TASK.began_at + round(1000 * after_s)
    return (TASK.next_look_at(now_ms, asked_s, **more) - now_ms) / 1000


def test_equal_tasks_have_equal_texts() -> None:
    assert PolledTask.decode(TASK.encode()) == TASK
    assert PolledTask.decode(TASK.encode()).encode() == TASK.encode()


def test_server_s_interval_is_honoured() -> None:
    assert [wait_s(0, asked_s) for asked_s in (None, 5, 0, 0.01, 10**6)] == [POLL_DEFAULT_S, 5, 1, 1, 3600]
    assert wait_s(0, None, least_s=5) == 5


def test_looks_at_an_old_task_are_rarer_whatever_its_server_wants() -> None:
    assert [wait_s(age_s, 1) for age_s in (50, 1000, 100_000)] == [1, 10, 60]
    looks, at_ms = 0, TASK.began_at
    while at_ms < TASK.expires_at:
        at_ms, looks = TASK.next_look_at(at_ms, 0), looks + 1

    assert looks < 11_000


def test_task_is_looked_at_when_its_call_has_expired_and_then_for_an_hour() -> None:
    before_ms = TASK.expires_at - 10
    assert TASK.next_look_at(before_ms, 3600) == TASK.expires_at + 1000
    assert wait_s(7 * 86_400 + 2, 30) == 60
    assert not TASK.is_given_up(TASK.expires_at + 3_600_000)
    assert TASK.is_given_up(TASK.expires_at + 3_600_001)
