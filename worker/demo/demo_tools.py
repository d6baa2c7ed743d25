"""The demo's own tool. It needs approval and has no effect, so approvals can be tried without a provider."""

from typing import Annotated

from pydantic import Field

from stagebus.worker.tools.function_tool import tool


@tool(idempotent=False, requires_approval=True)
def book_table(restaurant: str, guests: Annotated[int, Field(ge=1, le=20)] = 2) -> str:
    """Book a table for tonight; the demo's, so no restaurant hears of it.

    Args:
        restaurant: its name.
        guests: how many people.
    """
    return f"A table for {guests} at {restaurant} is booked, as far as the demo can."
