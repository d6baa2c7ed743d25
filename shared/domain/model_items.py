"""The items of a model's answer that only its provider understands.

Encrypted reasoning, signed thinking, the phase of a message: without them a model loses its chain of thought between two
rounds. They go back to the provider unchanged and in their order, so they are stored with the stage's result. Clients
never get them.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from pydantic import TypeAdapter

# The languages in which a provider is asked: POST /chat/completions, POST /responses, POST /v1/messages.
Api = Literal["chat", "responses", "messages"]

# Items of a stage beyond this are dropped together: a provider refuses a part of them.
ITEMS_MAX_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class ModelItems:
    """The items of one answer, and where they come from: no other model accepts them.

    Attributes:
        provider: the provider's name in the providers file.
        model: the model's id there.
        items: in the order in which they must go back.
    """

    api: Api
    provider: str
    model: str
    items: list[dict[str, Any]]

    def data(self) -> bytes:
        """Returns the items as JSON; the inverse of `decode`."""
        return orjson.dumps(self)


_ITEMS: Final = TypeAdapter(ModelItems)


def decode(data: bytes) -> ModelItems:
    """Decodes the JSON of `ModelItems.data`.

    Raises:
        ValueError: the data are no such JSON.
    """
    return _ITEMS.validate_json(data)
