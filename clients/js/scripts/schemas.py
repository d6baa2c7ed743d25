"""Prints the schemas of the API and of the events as JSON; `generate.mjs` turns them into `src/schema.ts`."""

import sys

import orjson
from pydantic import TypeAdapter

from stagebus.gateway.api.openapi import build_document
from stagebus.gateway.endpoint_table import ENDPOINTS
from stagebus.shared.domain import events
from stagebus.shared.domain.event_schema import json_schema
from stagebus.shared.domain.thread_frames import THREAD_FRAMES


def main() -> None:
    """Prints the schemas of events and of threads' frames, the API's components, and the names of the events that end a run."""
    schemas = {
        "events": json_schema(),
        "api": build_document(ENDPOINTS, is_open=False)["components"]["schemas"],
        "thread": TypeAdapter.json_schemas(
            [(model, "serialization", TypeAdapter(model)) for model in THREAD_FRAMES], ref_template="#/$defs/{model}"
        )[1]["$defs"],
        "terminal": sorted(events.TERMINAL_NAMES),
    }
    sys.stdout.buffer.write(orjson.dumps(schemas))


if __name__ == "__main__":
    main()
