"""Sums of usage: what is known of every part is known of the whole."""

from stagebus.shared.domain.usage import Cost, Usage

USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
PRICED = USAGE.model_copy(update={"cost": Cost(amount=0.1, currency="EUR")})


def test_tokens_add_up() -> None:
    assert Usage() + USAGE + USAGE == Usage(prompt_tokens=2, completion_tokens=4, total_tokens=6)
    assert (USAGE + Usage(prompt_tokens=5, total_tokens=5, cached_tokens=4)).cached_tokens == 4


def test_cost_is_known_where_that_of_every_part_is() -> None:
    """The sum is as exact as the prices; three times 0.1 as floats would not be."""
    assert (Usage() + PRICED + PRICED + PRICED).cost == Cost(amount=0.3, currency="EUR")
    assert (PRICED + USAGE + PRICED).cost is None
    assert (PRICED + PRICED.model_copy(update={"cost": Cost(amount=1, currency="USD")})).cost is None
