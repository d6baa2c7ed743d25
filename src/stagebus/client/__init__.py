"""Client of Stagebus: creates runs and follows them across every disconnect.

    from stagebus.client import Stagebus

    with Stagebus("http://127.0.0.1:8000") as bus:
        run = bus.runs.create(user_prompt="What is the weather in Paris?")
        for received in run:
            print(received.event, received.data)
        print(run.result().text)

`AsyncStagebus` has the same methods with `await` and `async for`. A client keeps only `run.cursor`;
`bus.runs.resume(run_id, cursor)` continues from it, even in another process.
"""

from stagebus.client.asynchronous import AsyncRun, AsyncRuns, AsyncStagebus
from stagebus.client.client_errors import (
    BadCursor,
    BadKey,
    BadUserName,
    ClientError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    Refused,
    RunCancelled,
    RunFailed,
    StreamBroken,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from stagebus.client.connection_state import ConnectionState
from stagebus.client.event_sequencer import RunEvent
from stagebus.client.feed_sequencer import FeedEvent
from stagebus.client.results import Result, Ticket
from stagebus.client.run_state import CallState, RunState, StageState
from stagebus.client.synchronous import Run, Runs, Stagebus
from stagebus.client.thread_sequencer import ThreadEvent
from stagebus.client.thread_state import ThreadState, TurnState
from stagebus.client.threads_async import AsyncThread, AsyncThreads
from stagebus.client.threads_sync import Thread, Threads
from stagebus.client.webhooks_async import AsyncWebhooks
from stagebus.client.webhooks_sync import Webhooks

__all__ = [
    "AsyncRun",
    "AsyncRuns",
    "AsyncStagebus",
    "AsyncThread",
    "AsyncThreads",
    "AsyncWebhooks",
    "BadCursor",
    "BadKey",
    "BadUserName",
    "CallState",
    "ClientError",
    "Conflict",
    "ConnectionState",
    "FeedEvent",
    "Forbidden",
    "InvalidRequest",
    "NotFound",
    "RateLimited",
    "Refused",
    "Result",
    "Run",
    "RunCancelled",
    "RunEvent",
    "RunFailed",
    "RunState",
    "Runs",
    "StageState",
    "Stagebus",
    "StreamBroken",
    "Thread",
    "ThreadEvent",
    "ThreadState",
    "Threads",
    "Ticket",
    "TurnState",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Webhooks",
]
