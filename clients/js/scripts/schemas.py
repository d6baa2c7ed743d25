"""What the gateway says of itself, as JSON on standard output: the types of `src/schema.ts` are made of it."""

import sys

import orjson

from stagebus.gateway.api.method_router import guards
from stagebus.gateway.api.openapi import document
from stagebus.gateway.app import ROUTES
from stagebus.shared.domain import events


def main() -> None:
    """Print the events' schema, the API's, and which events end a run."""
    schemas = {
        "events": events.json_schema(),
        "api": document(guards(ROUTES), is_open=False)["components"]["schemas"],
        "terminal": sorted(events.TERMINAL_NAMES),
    }
    sys.stdout.buffer.write(orjson.dumps(schemas))


if __name__ == "__main__":
    main()
