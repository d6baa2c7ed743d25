"""A coroutine begun here and now, outside of any task, and awaited later if it did not come to its end.

Sending to a client that keeps up never waits. To wake a task for it costs a future and a
turn of the event loop for each event: a fifth of all that relaying it costs. (Python 3.12
has eager tasks for this.)
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class Rest:
    """What is left of a coroutine that had to wait; await it once."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: asyncio.Future[Any] | None) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        """Go on as if the coroutine had been awaited from its start."""
        waits_for = self._waits_for
        try:
            while True:
                yield waits_for
                waits_for = self._coroutine.send(None)
        except StopIteration:
            return
        finally:
            self._coroutine.close()


class Failed:
    """An awaitable that raises."""

    def __init__(self, exc: Exception) -> None:
        self._exc = exc

    def __await__(self) -> Generator[Any, Any, None]:
        """Raise."""
        raise self._exc
        yield


def begin(coroutine: Coroutine[Any, Any, None]) -> Rest | Failed | None:
    """Run it up to its first wait; None where it is done. Its error comes to whoever awaits the rest."""
    try:
        return Rest(coroutine, coroutine.send(None))
    except StopIteration:
        return None
    except Exception as exc:  # noqa: BLE001 - raised where it is awaited
        return Failed(exc)
