"""The demo's encrypted reasoning: a seal over the conversation before it, so that the demo knows it again; sans-IO.

With `reasoning=1` in its script the demo gives a seal with its reasoning, and refuses its own calls if they come back
without it, or with another one. That is stricter than providers are, and shows whether a client gives back what it has to.
"""

from collections.abc import Mapping
from typing import Any, Final

from stagebus.worker.demo.demo_chat import digest_of

# The field of an assistant's message in the form of chat completions.
SEAL_KEY: Final = "seal"


def seal_of(request: Mapping[str, Any]) -> str:
    """Returns the seal of the answer to a request."""
    return f"demo-seal-{digest_of(request)}"


def has_broken_seal(request: Mapping[str, Any]) -> bool:
    """Returns whether calls of the demo in the current turn come back without their reasoning."""
    messages = request["messages"]
    turn = next((at for at in reversed(range(len(messages))) if messages[at].get("role") == "user"), 0)
    return any(
        message.get("tool_calls")
        and message.get(SEAL_KEY) != seal_of({"model": request["model"], "messages": messages[:at]})
        for at, message in enumerate(messages)
        if at > turn
    )
