"""The JSON Schema of the events, as served at `GET /schema/events.json`."""

from functools import cache

from pydantic import BaseModel, TypeAdapter

from stagebus.shared.domain.events import EVENTS, UNLOGGED, Event, Gap, Json, StreamStatus
from stagebus.shared.domain.stage_results import ModelStageResult, ToolStageResult


@cache
def json_schema() -> Json:
    """Returns one JSON Schema (2020-12) with `$defs` by class name and `x-events` by event name."""
    frames: tuple[type[Event | Gap | StreamStatus], ...] = (*EVENTS, *UNLOGGED)
    shown: tuple[type[BaseModel], ...] = (*frames, ModelStageResult, ToolStageResult)
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
        "x-events": {model.event: {"$ref": f"#/$defs/{model.__name__}"} for model in frames},
        "$defs": definitions,
    }
