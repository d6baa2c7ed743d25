"""Explains where a run is: what has happened to it, what it waits for, and what would move it."""

from typing import Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import RUN_ID, accepts
from stagebus.gateway.api.responses import JSON, json_response
from stagebus.gateway.api.schemas.answers import Answer, Timestamp, timestamp
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import RunNotFound, StorageUnavailable
from stagebus.shared.log.run_outlook import WaitsFor
from stagebus.shared.runtime.sanitize import sanitize
from stagebus.shared.runtime.story_text import story_lines
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import run_store
from stagebus.shared.store.run_explanation import Explanation, explain_run

TEXT: Final = "text/plain"


class StoryItem(Answer):
    """Something that happened to a run."""

    at: Timestamp = Field(description="when, by the clock of the process that wrote it")
    after_ms: int = Field(description="the same, in ms since the run was created")
    text: str = Field(description="what happened, for people; the wording may change")


class RunExplanation(Answer):
    """The explanation of where a run is."""

    id: str = Field(description="the run's id")
    status: RunStatus = Field(description="the run's state")
    waits_for: WaitsFor = Field(description="what the run waits for; stable, for programs")
    now: str = Field(description="what the run does or waits for, for people")
    next: str = Field(description="what would move it, for people")
    story: list[StoryItem] = Field(description="what has happened, oldest first; long stories are cut in the middle")

    @classmethod
    def of(cls, explained: Explanation) -> "RunExplanation":
        """Returns the response."""
        run, outlook = explained.run, explained.outlook
        story = [
            StoryItem(at=timestamp(line.at), after_ms=max(0, line.at - run.created_at), text=line.text)
            for line in explained.story
        ]
        return cls(
            id=run.run_id, status=run.status, waits_for=outlook.waits_for, now=outlook.now, next=outlook.next,
            story=story,
        )  # fmt: skip


async def explain_run_of_tenant(request: Request) -> Response:
    """Explain where a run is: what has happened to it, what it waits for, and what would move it.

    The answer is JSON, or with `Accept: text/plain` lines of text. It is for people and names workers and providers.
    """
    gateway = gateway_of(request)
    with storage_errors():
        run = await run_store.get_run(gateway.redis, request.path_params["run_id"], principal_of(request).owner)
        slots = {name: entry.concurrency_max for name, entry in gateway.providers.by_name.items()}
        answer = RunExplanation.of(await explain_run(gateway.redis, gateway.settings, run, slots))
    if accepts(request, TEXT):
        lines = (sanitize(line) + "\n" for line in story_lines(answer.model_dump(mode="json")))
        return Response("".join(lines), media_type=TEXT)
    return json_response(answer)


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/runs/{run_id}/explain", explain_run_of_tenant, needs(Scope.RUNS_READ),
        {200: ResponseSpec("The explanation.", {JSON: RunExplanation, TEXT: {"type": "string"}})},
        [RUN_ID], errors=[RunNotFound, StorageUnavailable],
    ),
)  # fmt: skip
