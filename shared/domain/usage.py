"""Token usage as providers count it, and its cost by the operator's prices; sans-IO."""

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

COST_DECIMALS: Final = 9  # more than any price has, but coarser than the rounding error of a sum


class Cost(BaseModel):
    """The cost of tokens by the operator's prices."""

    model_config = ConfigDict(frozen=True)

    amount: float
    currency: str = Field(description="ISO 4217 code, such as EUR")


class Usage(BaseModel):
    """Tokens as the providers count them, summed over the stages."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int | None = Field(
        default=None, description="part of prompt_tokens that the provider had cached; absent if no provider reports it"
    )
    cache_write_tokens: int | None = Field(
        default=None,
        description="part of prompt_tokens that the provider wrote to its cache; absent if no provider reports it",
    )
    reasoning_tokens: int | None = Field(
        default=None, description="part of completion_tokens that is reasoning; absent if no provider reports it"
    )
    estimated: bool | None = Field(
        default=None,
        description="true if a part is an estimate, since the run was stopped before its provider counted; else absent",
    )
    cost: Cost | None = Field(
        default=None, description="cost of all these tokens; absent if one of the models has no price"
    )

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cached_tokens=_sum_known(self.cached_tokens, other.cached_tokens),
            cache_write_tokens=_sum_known(self.cache_write_tokens, other.cache_write_tokens),
            reasoning_tokens=_sum_known(self.reasoning_tokens, other.reasoning_tokens),
            estimated=self.estimated or other.estimated,
            cost=_total_cost([part for part in (self, other) if part.total_tokens]),
        )


def _sum_known(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _total_cost(parts: Sequence[Usage]) -> Cost | None:
    """Returns None if a part has no cost: a sum of the rest would look like the cost of all tokens."""
    costs = [part.cost for part in parts if part.cost is not None]
    if not costs or len(costs) < len(parts) or len({cost.currency for cost in costs}) > 1:
        return None
    return Cost(amount=round(sum(cost.amount for cost in costs), COST_DECIMALS), currency=costs[0].currency)
