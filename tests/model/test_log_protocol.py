"""The model of the log protocol holds; and each of its rules is there for a reason."""

import pytest

from tests.model.log_protocol import STAGE_TWO, Budget, Rules, explore


def test_protocol_holds_in_every_state() -> None:
    """Two claims, a lost tail, a lost reply and a lost message, in every order."""
    walk = explore(Budget(claims=2, tails=1, replies=1, messages=1))

    assert walk.violation is None
    assert walk.states > 170_000, "the walk went everywhere"


def test_protocol_holds_for_a_stages_client() -> None:
    """Two claims and a lost tail; `make model` walks further."""
    walk = explore(Budget(claims=2, tails=1, replies=0, messages=0), first_sequence=STAGE_TWO)

    assert walk.violation is None
    assert walk.states > 22_000, "the walk went everywhere"


@pytest.mark.parametrize("rule", Rules._fields)
def test_every_rule_is_needed(rule: str) -> None:
    """Taken away, the walk finds what it is there for."""
    walk = explore(Budget(claims=3, tails=1, replies=0, messages=1), Rules()._replace(**{rule: False}))

    assert walk.violation is not None
