"""The JSON Schema of the events, as served at `GET /schema/events.json`."""

from functools import cache

from pydantic import BaseModel, TypeAdapter

from stagebus.shared.domain.events import EVENTS, UNLOGGED, Event, Gap, Json, StreamStatus
from stagebus.shared.domain.stage_results import ModelStageResult, ToolStageResult
from stagebus.shared.domain.thread_frames import THREAD_FRAMES


@cache
def json_schema() -> Json:
    """Returns one JSON Schema (2020-12) with `$defs` by class name, `x-events` and `x-thread-frames` by event name."""
    frames: tuple[type[Event | Gap | StreamStatus], ...] = (*EVENTS, *UNLOGGED)
    shown: tuple[type[BaseModel], ...] = (*frames, *THREAD_FRAMES, ModelStageResult, ToolStageResult)
    _, schema = TypeAdapter.json_schemas(
        [(model, "serialization", TypeAdapter(model)) for model in shown], ref_template="#/$defs/{model}"
    )
    definitions = schema["$defs"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "/schema/events.json",
        "title": "Stagebus events",
        "description": "The data of each server-sent event, by the name of the event.",
        "oneOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in frames],
        "x-thread-frames": {frame.event: {"$ref": f"#/$defs/{frame.__name__}"} for frame in THREAD_FRAMES},
        "x-events": {model.event: {"$ref": f"#/$defs/{model.__name__}"} for model in frames},
        "$defs": definitions,
    }
