"""Answers the calls of a run's client tools with functions, for scripts. Generated from its asynchronous form by make_synchronous.py."""

import logging
import time
from typing import TYPE_CHECKING

from stagebus.client import api_requests
from stagebus.client.call_tasks_sync import CallTasks, run_function
from stagebus.client.client_errors import ClientError, Conflict, NotFound, Refused
from stagebus.client.event_sequencer import RunEvent
from stagebus.client.open_calls import RETRY_S, CallOutcome, ClientTools, OpenCall, OpenCalls
from stagebus.client.thread_sequencer import ThreadEvent

if TYPE_CHECKING:
    from stagebus.client.synchronous import Stagebus

logger = logging.getLogger(__name__)


class CallAnswerer:
    """Claims the calls that a run's events announce, runs their functions, and gives the results."""

    def __init__(self, client: "Stagebus", run_id: str, tools: ClientTools) -> None:
        self._client = client
        self._run_id = run_id
        self._tools = tools
        self._calls = OpenCalls(tools)
        self._tasks = CallTasks()

    def on_event(self, received: RunEvent) -> None:
        """Take an event of the run."""
        call = self._calls.apply(received)
        if call is not None:
            self._tasks.start(self._answer, call)

    def close(self) -> None:
        """Stop what still runs. Calls without a result are claimed by other clients."""
        self._calls.close()
        self._tasks.close()

    def _answer(self, call: OpenCall) -> None:
        """Answer a call while it is open. Whatever the gateway refuses for good is another client's, or has its result."""
        while self._calls.is_open(call):
            try:
                outcome = self._calls.outcome_of(call)
                if outcome is None:
                    self._claim(call)
                    outcome = run_function(self._tools[call.name], call.arguments, lambda: self._renew(call))
                    self._calls.keep(call, outcome)
                self._give(call, outcome)
                return
            except (Conflict, NotFound) as exc:
                if exc.code != "call_claimed" or call.once:
                    return
                wait_s = exc.retry_after_s or RETRY_S
            except Refused as exc:
                logger.warning("run %s: the call %s cannot be answered here: %s", self._run_id, call.call_id, exc)
                return
            except ClientError:
                wait_s = RETRY_S
            time.sleep(wait_s)

    def _claim(self, call: OpenCall) -> None:
        self._client.send(api_requests.claim_call(self._run_id, call.call_id, call.ref, self._calls.holder))

    def _renew(self, call: OpenCall) -> None:
        """Renew the claim. If that fails, the function runs on: the first result counts, whoever gives it."""
        try:
            self._claim(call)
        except ClientError as exc:
            logger.debug("run %s: the claim on %s was not renewed: %s", self._run_id, call.call_id, exc)

    def _give(self, call: OpenCall, outcome: CallOutcome) -> None:
        request = api_requests.give_result(
            self._run_id, call.call_id, outcome.content, is_error=outcome.is_error, ref=call.ref
        )
        try:
            self._client.send(request)
        except Refused as exc:
            if exc.code != "result_too_large":
                raise
            too_long = api_requests.give_result(self._run_id, call.call_id, str(exc), is_error=True, ref=call.ref)
            self._client.send(too_long)


class ThreadAnswerer:
    """The same for the runs of a thread, each of which has calls of its own."""

    def __init__(self, client: "Stagebus", tools: ClientTools) -> None:
        self._client = client
        self._tools = tools
        self._answerers: dict[str, CallAnswerer] = {}

    def on_event(self, received: ThreadEvent) -> None:
        """Take an event of the thread."""
        event = received.run_event
        if event is None or not self._tools:
            return
        if received.run_id not in self._answerers:
            self._answerers[received.run_id] = CallAnswerer(self._client, received.run_id, self._tools)
        self._answerers[received.run_id].on_event(event)

    def close(self) -> None:
        """Stop what still runs."""
        for answerer in self._answerers.values():
            answerer.close()
