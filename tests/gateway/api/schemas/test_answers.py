from stagebus.gateway.api.schemas.answers import RunView, timestamp
from stagebus.gateway.api.urls import Urls
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import StageCompleted
from stagebus.shared.domain.runs import RunRecord, RunStatus
from stagebus.shared.domain.usage import Usage
from stagebus.shared.store.run_result import StoredResult
from stagebus.shared.store.run_store import StoredStage

RUN = RunRecord(
    run_id="01J9ZK3V7Q8E5W2R4T6Y8V0P1A", status=RunStatus.SUCCEEDED, attempt=5204, tries=1, last_id=EventId(5204, 118),
    tenant="default", model="m", request={"messages": [{"role": "user", "content": "Hello"}], "metadata": {"a": "b"}},
    created_at=1769860800123, started_at=1769860801000, finished_at=1769860802000, worker="w", cancel=False, cancel_reason=None,
    error=None, usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, decisions={}, parked_ms=0,
)  # fmt: skip
DONE = StoredStage("extraction", EventId(0, 3), StageCompleted(stage_id="extraction", result={"text": "Hi"}))
OPEN = StoredStage("tools", EventId(0, 9), None)


def test_timestamps_are_iso_8601_utc_with_milliseconds() -> None:
    assert timestamp(1769860800123) == "2026-01-31T12:00:00.123Z"
    assert timestamp(1769860800000) == "2026-01-31T12:00:00.000Z"


def test_run_view_contains_record_and_stages() -> None:
    view = RunView.of_stages(RUN, Urls(), [DONE], StoredResult("Hi", "stop"))

    assert view.started_at == "2026-01-31T12:00:01.000Z"
    assert view.usage == Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    assert view.last_event_id == "5204-118"
    assert view.result is not None
    assert view.result.text == "Hi"
    assert view.links.events == "/runs/01J9ZK3V7Q8E5W2R4T6Y8V0P1A/events"
    assert view.stages[0].events == "/runs/01J9ZK3V7Q8E5W2R4T6Y8V0P1A/stages/extraction/events"


def test_unset_times_are_null() -> None:
    view = RunView.of_stages(RUN._replace(started_at=0, finished_at=0), Urls(), [])

    assert (view.started_at, view.finished_at) == (None, None)


def test_unfinished_stage_is_running_or_incomplete_with_its_run() -> None:
    def stages(status: RunStatus) -> list[str]:
        return [stage.status for stage in RunView.of_stages(RUN._replace(status=status), Urls(), [DONE, OPEN]).stages]

    assert stages(RunStatus.RUNNING) == ["completed", "running"]
    assert stages(RunStatus.CANCELLED) == ["completed", "incomplete"]
