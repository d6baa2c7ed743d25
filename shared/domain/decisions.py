r"""Codec of a person's decisions on waiting calls, in the field `decisions` of a run's record, by call id.

{"call_1": "{\"decision\":\"approve\",\"arguments\":\"{\\\"n\\\":2}\"}"}

Each decision is a JSON text inside the object, so the script that adds one keeps the others byte for byte.
"""

from collections.abc import Mapping
from typing import Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict

REASON_MAX_CHARS: Final = 2_000
ANSWER_MAX_CHARS: Final = 16_000
ARGUMENTS_MAX_BYTES: Final = 64 * 2**10


class Decision(BaseModel):
    """A decision: approve (with new arguments if they are set), deny, or the answer to a question."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    decision: Literal["approve", "deny", "answer"]
    arguments: str | None = None  # JSON text
    reason: str | None = None
    text: str | None = None
    is_expired: bool = False

    @property
    def is_approval(self) -> bool:
        """Returns whether the call may run."""
        return self.decision == "approve"


# The decision if nobody decides in time.
EXPIRED: Final = Decision(decision="deny", is_expired=True)


def encode(decision: Decision) -> str:
    """Encodes a decision. Equal decisions give equal texts."""
    return orjson.dumps(decision.model_dump(exclude_defaults=True), option=orjson.OPT_SORT_KEYS).decode()


def decode(text: str) -> Decision:
    """Decodes a decision; the inverse of `encode`."""
    return Decision.model_validate_json(text)


def decode_all(field: bytes | None) -> Mapping[str, Decision]:
    """Decodes the field `decisions` of a run's record, by call id."""
    return {call_id: decode(text) for call_id, text in orjson.loads(field or b"{}").items()}
