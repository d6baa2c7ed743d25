"""One Lua script: sent by its hash, and whole where the server does not know it (after a restart).

Spec: https://redis.io/docs/latest/develop/programmability/eval-intro/
"""

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from stagebus.shared.storage.pipelined import PipelinedConnection


class Script:
    """One Lua file and its hash."""

    def __init__(self, name: str) -> None:
        self.text = (files("stagebus.shared.storage") / "lua" / f"{name}.lua").read_text()
        # Not for security: EVALSHA names scripts by SHA-1.
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, redis: Redis | PipelinedConnection, key_list: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it; what the server answers."""
        try:
            return await redis.evalsha(self.sha, len(key_list), *key_list, *args)  # type: ignore[misc]
        except NoScriptError:
            return await redis.eval(self.text, len(key_list), *key_list, *args)  # type: ignore[misc]
