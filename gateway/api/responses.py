"""Models as JSON responses."""

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

JSON: Final = "application/json"


def answer(
    model: BaseModel, status_code: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON
) -> Response:
    """A response with the model as its body."""
    return Response(model.model_dump_json(), status_code, headers, media_type)
