"""The model of the threads' protocol: no state violates an invariant, and every rule is needed."""

import pytest

from tests.model.thread_protocol import ENQUEUE, INTERRUPT, REJECT, STEER, Budget, Rules, explore

# Each walk with the least number of states that it must visit; `make model` walks further.
WALKS = [
    pytest.param((ENQUEUE, STEER, STEER), Budget(), 2, 1_400, id="steering, and two results of one call"),
    pytest.param((ENQUEUE, STEER, INTERRUPT), Budget(), 1, 2_200, id="an interrupt takes over a steering run"),
    pytest.param((ENQUEUE, INTERRUPT, INTERRUPT), Budget(), 1, 6_800, id="two interrupts"),
    pytest.param((REJECT, ENQUEUE, STEER), Budget(replies=1), 1, 2_100, id="a lost reply"),
    pytest.param((ENQUEUE, ENQUEUE, ENQUEUE), Budget(strays=1), 1, 1_400, id="a waiting run that looks due"),
    pytest.param((ENQUEUE, ENQUEUE, ENQUEUE), Budget(deaths=1), 1, 2_800, id="a worker dies or sleeps"),
    pytest.param((ENQUEUE, STEER, ENQUEUE), Budget(deletes=1), 1, 2_500, id="a run is deleted"),
    pytest.param((ENQUEUE, STEER, ENQUEUE), Budget(cancels=1), 1, 3_000, id="a run is cancelled"),
]
# The smallest walk that shows what each rule prevents.
NEEDED = {
    "claim_needs_turn": Budget(strays=1),
    "refusal_gives_back": Budget(strays=1),
    "end_starts_next": Budget(deaths=1),
    "end_keeps_messages": Budget(),
    "run_before_thread": Budget(replies=1),
    "steering_is_one_step": Budget(deaths=1),
    "steering_checks_place": Budget(deletes=1),
    "end_frees_steering": Budget(),
    "parent_fixed_at_turn": Budget(),
    "park_compares_results": Budget(),
    "first_result_stands": Budget(),
    "result_is_kept": Budget(deaths=1),
    "deletion_leaves_tombstone": Budget(replies=1, deletes=1),
    "deletion_starts_next": Budget(deletes=1),
    "writes_are_fenced": Budget(deaths=1),
    "sweep_ends_cancelled": Budget(),
}
KINDS = {
    "run_before_thread": (REJECT, REJECT, REJECT),
    "sweep_ends_cancelled": (ENQUEUE, INTERRUPT, INTERRUPT),
    **dict.fromkeys(("steering_is_one_step", "steering_checks_place", "end_frees_steering"), (ENQUEUE, STEER, STEER)),
}


@pytest.mark.parametrize(("kinds", "budget", "clients", "states_min"), WALKS)
def test_protocol_holds_in_every_state(kinds: tuple[str, ...], budget: Budget, clients: int, states_min: int) -> None:
    walk = explore(kinds, budget, clients=clients)

    assert walk.violation is None
    assert walk.states > states_min, "the walk visited too few states"


# A claim without a lease strands a run only after a death and a lost tail, which `make model` walks.
@pytest.mark.parametrize("rule", [rule for rule in Rules._fields if rule != "claim_needs_lease"])
def test_every_rule_is_needed(rule: str) -> None:
    """Without the rule, the walk finds the violation that the rule prevents."""
    walk = explore(
        KINDS.get(rule, (ENQUEUE, ENQUEUE, ENQUEUE)), NEEDED[rule], Rules()._replace(**{rule: False}), clients=2
    )

    assert walk.violation is not None
