"""Runs the functions of client tools beside the stream of events, in threads."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from stagebus.client.open_calls import RENEW_S, CallOutcome, outcome_of_error, outcome_of_value

CLOSE_MAX_S: Final = 1.0


class CallTasks:
    """The threads of one stream. They do not keep the process alive, and stop claiming calls when the stream ends."""

    def __init__(self) -> None:
        self._is_closed = False
        self._threads: set[threading.Thread] = set()

    def start(self, work: Callable[..., None], *args: Any) -> None:
        """Start work in the background."""
        thread = threading.Thread(target=self._run, args=(work, *args), daemon=True)
        self._threads.add(thread)
        thread.start()

    def close(self) -> None:
        """Let requests under way end. A function cannot be stopped; its next request may find the client closed."""
        self._is_closed = True
        deadline = time.monotonic() + CLOSE_MAX_S
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except RuntimeError:
            if not self._is_closed:
                raise
        finally:
            self._threads.discard(threading.current_thread())


def run_function(function: Callable[..., Any], arguments: str, renew: Callable[[], object]) -> CallOutcome:
    """Call a function with JSON arguments in a thread, and `renew` from time to time until it returns."""
    outcomes: list[CallOutcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(_call(function, arguments)), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(RENEW_S)
        if thread.is_alive():
            renew()
    return outcomes[0] if outcomes else CallOutcome("the function ended its thread", is_error=True)


def _call(function: Callable[..., Any], arguments: str) -> CallOutcome:
    try:
        return outcome_of_value(function(**json.loads(arguments or "{}")))
    except Exception as exc:  # noqa: BLE001 - the model gets it
        return outcome_of_error(exc)
