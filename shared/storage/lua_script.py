"""One Lua script. EVALSHA sends its hash; EVAL sends its text where the server does not know the hash.

Spec: https://redis.io/docs/latest/develop/programmability/eval-intro/
"""

from collections.abc import Awaitable, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, Protocol

from redis.exceptions import NoScriptError


class ScriptConnection(Protocol):
    """A connection that runs scripts: a client with its pool, or a `PipelinedConnection`."""

    def execute_command(self, *args: Any) -> Awaitable[Any]:
        """Sends one command and returns the server's reply."""


class Script:
    """One Lua file and its hash.

    Args:
        uses: files in `lua/include` whose functions the script calls. Their text precedes the script's.
    """

    def __init__(self, name: str, uses: Sequence[str] = ()) -> None:
        folder = files("stagebus.shared.storage") / "lua"
        paths = [*(folder / "include" / f"{used}.lua" for used in uses), folder / f"{name}.lua"]
        self.text = "\n".join(path.read_text() for path in paths)
        # EVALSHA names scripts by SHA-1; it protects nothing.
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, connection: ScriptConnection, key_list: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script and returns the server's reply.

        Raises:
            RedisError, OSError: Redis is away or the script failed; the script may have run.
        """
        try:
            return await connection.execute_command("EVALSHA", self.sha, len(key_list), *key_list, *args)
        except NoScriptError:  # the server was restarted
            return await connection.execute_command("EVAL", self.text, len(key_list), *key_list, *args)
