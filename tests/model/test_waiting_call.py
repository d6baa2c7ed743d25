"""The model of a waiting call: no state violates an invariant, and every rule is needed."""

import pytest

from tests.model.waiting_call import Budget, Rules, explore

WHOLE = Budget(claims=2, tails=0, posts=2)
LOSSY = Budget(claims=2, tails=1, posts=1)


@pytest.mark.parametrize("budget", [WHOLE, LOSSY], ids=["whole", "lossy"])
def test_waiting_call_gets_its_first_result_in_every_state(budget: Budget) -> None:
    walk = explore(budget)

    assert walk.violation is None
    assert walk.states > 1000, "the walk visited too few states"


@pytest.mark.parametrize("rule", Rules._fields)
def test_every_rule_of_waiting_calls_is_needed(rule: str) -> None:
    """Without the rule, one of the walks finds the violation that the rule prevents."""
    walks = (explore(budget, Rules()._replace(**{rule: False})) for budget in (WHOLE, LOSSY))

    assert any(walk.violation for walk in walks)
