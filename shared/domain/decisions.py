r"""What a person decided on a call that waited: the text in the record's field `decisions`, by call id.

{"call_1": "{\"decision\":\"approve\",\"arguments\":\"{\\\"n\\\":2}\"}"}

The decisions are texts within that object, so that the script which adds one leaves the
others as they are, byte for byte.
"""

from collections.abc import Mapping
from typing import Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict

REASON_MAX_CHARS: Final = 2_000
ANSWER_MAX_CHARS: Final = 16_000
ARGUMENTS_MAX_BYTES: Final = 64 * 2**10


class Decision(BaseModel):
    """One decision: approve, with other arguments if they are set, deny, or the answer to a question."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    decision: Literal["approve", "deny", "answer"]
    arguments: str | None = None  # JSON text
    reason: str | None = None
    text: str | None = None
    is_expired: bool = False

    @property
    def is_approval(self) -> bool:
        """Whether the call may run."""
        return self.decision == "approve"


# Nobody decided in time.
EXPIRED: Final = Decision(decision="deny", is_expired=True)


def encode(decision: Decision) -> str:
    """One text for one decision: whether two are the same shows in it."""
    return orjson.dumps(decision.model_dump(exclude_defaults=True), option=orjson.OPT_SORT_KEYS).decode()


def decode(text: str) -> Decision:
    """The inverse of `encode`."""
    return Decision.model_validate_json(text)


def decode_all(field: bytes | None) -> Mapping[str, Decision]:
    """All decisions of a run, out of its record's field."""
    return {call_id: decode(text) for call_id, text in orjson.loads(field or b"{}").items()}
