"""One Lua script. EVALSHA sends its hash; EVAL sends its text where the server does not know the hash.

On a cluster scripts publish to the channel's shard, which is that of their keys: PUBLISH would go to every node, so that
more nodes would not make the system faster.

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
        self.sha = _sha(self.text)
        self.sharded_text = self.text.replace("'PUBLISH'", "'SPUBLISH'")
        self.sharded_sha = _sha(self.sharded_text)

    async def __call__(self, connection: ScriptConnection, key_list: Sequence[str], args: Sequence[Any]) -> Any:
        """Runs the script and returns the server's reply.

        Raises:
            RedisError, OSError: Redis is away or the script failed; the script may have run.
        """
        is_sharded = getattr(connection, "is_cluster", False)
        sha = self.sharded_sha if is_sharded else self.sha
        try:
            return await connection.execute_command("EVALSHA", sha, len(key_list), *key_list, *args)
        except NoScriptError:  # the server was restarted
            text = self.sharded_text if is_sharded else self.text
            return await connection.execute_command("EVAL", text, len(key_list), *key_list, *args)


def _sha(text: str) -> str:
    """Returns the name of a script for EVALSHA; it protects nothing."""
    return sha1(text.encode(), usedforsecurity=False).hexdigest()
