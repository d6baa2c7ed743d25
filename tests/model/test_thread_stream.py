"""Every interleaving of a thread's stream, and that each rule of the hand-over is needed."""

import pytest

from tests.model.thread_stream import ALL_STREAM_RULES, StreamRules, explore

STATES_MIN = 5_000


def test_client_gets_each_event_of_each_turn_once_whatever_happens() -> None:
    count, violation = explore()

    assert not violation
    assert count > STATES_MIN


@pytest.mark.parametrize("rule", StreamRules._fields)
def test_without_a_rule_the_client_misses_or_repeats_events(rule: str) -> None:
    _, violation = explore(ALL_STREAM_RULES._replace(**{rule: False}))

    assert violation
