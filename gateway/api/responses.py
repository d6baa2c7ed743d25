"""JSON responses, and the media types of the API."""

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"


def json_response(
    model: BaseModel, status_code: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON
) -> Response:
    """Returns a response with the model as its body."""
    return Response(model.model_dump_json(), status_code, headers, media_type)
