"""Appends the events of a stage to the run's log as the stage yields them."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from stagebus.shared.domain.events import Event, StageCompleted
from stagebus.worker.execution.producer import Producer
from stagebus.worker.execution.token_budget import STEP_TOKENS, TokenBudget


async def publish_stage(
    producer: Producer,
    events: AsyncGenerator[Event, None],
    began_at: float,
    on_event: Callable[[Event], None],
    *,
    budget: TokenBudget | None = None,
) -> StageCompleted:
    """Appends the events of a stage; returns the last one, its completion, with the stage's duration.

    Args:
        began_at: the monotonic time at which this attempt began the stage.
        on_event: called with each event before it is put.
        budget: of a model stage, which ends when the budget is used up.

    Raises:
        BudgetExceeded: the run has used more tokens than it may.
    """
    last: Event | None = None
    async with aclosing(events):
        async for event in events:
            last = event
            if isinstance(event, StageCompleted):
                last = event.model_copy(update={"duration_ms": round(1000 * (time.monotonic() - began_at))})
            on_event(last)
            producer.put(last)
            if producer.is_full:
                await producer.wait_for_room()
            if budget is not None and budget.is_stream_over and not isinstance(last, StageCompleted):
                await budget.check(STEP_TOKENS)
    assert isinstance(last, StageCompleted), "a stage ends with its completion"
    return last
