"""Prints the schemas of the API and of the events as JSON; `generate.mjs` turns them into `src/schema.ts`."""

import sys

import orjson

from stagebus.gateway.api.openapi import build_document
from stagebus.gateway.endpoint_table import ENDPOINTS
from stagebus.shared.domain import events
from stagebus.shared.domain.event_schema import json_schema


def main() -> None:
    """Prints the events' schema, the API's component schemas, and the names of the events that end a run."""
    schemas = {
        "events": json_schema(),
        "api": build_document(ENDPOINTS, is_open=False)["components"]["schemas"],
        "terminal": sorted(events.TERMINAL_NAMES),
    }
    sys.stdout.buffer.write(orjson.dumps(schemas))


if __name__ == "__main__":
    main()
