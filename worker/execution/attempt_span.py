"""The spans of a run that do not belong to a stage: its wait in the queue, and each attempt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.observability import spans
from stagebus.shared.observability.spans import NO_SPAN, Span, Value
from stagebus.shared.observability.trace import bound
from stagebus.shared.storage.run_scripts import Claim


@contextmanager
def attempt_span(claim: Claim, run: RunRecord, worker: str, *, with_content: bool) -> Iterator[Span]:
    """Context manager: binds the run's trace to the task, and records the attempt.

    The first claim records the wait in the queue, too. Later ones link to the attempt that wrote the log's last event.
    """
    if not spans.is_on():
        with bound(run.trace):
            yield NO_SPAN
        return
    spans.with_content.set(with_content)  # for the rest of this task, which works on no other run
    trace = replace(run.trace, traceparent=run.trace.traceparent or spans.root_of(run.run_id))
    about: dict[str, Value] = {"stagebus.run.id": run.run_id, "stagebus.tenant": run.tenant}
    previous = claim.last_id.attempt
    if previous == 0:
        spans.record("queue", about, parent=trace, start_ms=run.created_at, end_ms=claim.now)
    links = [spans.traceparent_of_attempt(trace.traceparent, run.run_id, previous)] if previous else []
    attributes: dict[str, Value] = {
        **about,
        "stagebus.attempt": claim.attempt,
        "stagebus.tries": claim.tries,
        "stagebus.worker": worker,
    }
    with spans.span(
        "attempt",
        "consumer",
        attributes,
        parent=trace,
        links=links,
        span_id=spans.attempt_id(run.run_id, claim.attempt),
    ) as span:
        yield span
