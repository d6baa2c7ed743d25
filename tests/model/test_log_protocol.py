"""The model of the log protocol: no state violates an invariant, and every rule is needed."""

import pytest

from tests.model.log_protocol import STAGE_TWO, Budget, Rules, explore


def test_protocol_holds_in_every_state() -> None:
    """With two claims, a lost tail and a lost reply, in every order; `make model` adds a lost message."""
    walk = explore(Budget(claims=2, tails=1, replies=1, messages=0))

    assert walk.violation is None
    assert walk.states > 100_000, "the walk visited too few states"


def test_protocol_holds_for_a_client_of_a_stage() -> None:
    """With two claims and a lost tail; `make model` walks further."""
    walk = explore(Budget(claims=2, tails=1, replies=0, messages=0), first_sequence=STAGE_TWO)

    assert walk.violation is None
    assert walk.states > 22_000, "the walk visited too few states"


def test_protocol_strands_no_parked_run() -> None:
    """With two claims, a park, decisions and a lost tail, including the queue and its leases."""
    walk = explore(Budget(claims=2, tails=1, replies=0, messages=0, parks=1))

    assert walk.violation is None
    assert walk.states > 70_000, "the walk visited too few states"


@pytest.mark.parametrize("rule", Rules._fields)
def test_every_rule_is_needed(rule: str) -> None:
    """Without the rule, the walk finds the violation that the rule prevents."""
    budget = Budget(claims=3, tails=1, replies=0, messages=1)
    if rule == "claim_needs_lease":  # the only rule that concerns the queue
        budget = Budget(claims=2, tails=1, replies=0, messages=0, parks=1)
    walk = explore(budget, Rules()._replace(**{rule: False}))

    assert walk.violation is not None
