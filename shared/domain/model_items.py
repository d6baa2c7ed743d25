"""The items of a model's answer that only its provider understands.

Encrypted reasoning, signed thinking, the phase of a message: without them a model loses its chain of thought between two
rounds. They go back to the provider unchanged and in their order, so they are stored with the stage's result. Clients
never get them.
"""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

# The languages in which a provider is asked: POST /chat/completions, POST /responses, POST /v1/messages.
Api = Literal["chat", "responses", "messages"]

# Items of a stage beyond this are dropped together: a provider refuses a part of them.
ITEMS_MAX_BYTES: Final = 2**20


class ModelItems(BaseModel):
    """The items of one answer, and where they come from: no other model accepts them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    api: Api
    provider: str = Field(description="the provider's name in the providers file")
    model: str = Field(description="the model's id there")
    items: list[dict[str, Any]] = Field(description="in the order in which they must go back")
