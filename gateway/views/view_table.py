"""The views in other protocols: each is a module of this package and is listed here, nowhere else.

Docs: docs/views.md
"""

from typing import Final

from stagebus.gateway.api.endpoint import Endpoint
from stagebus.gateway.views import agui, durable_streams, openai_chat, openai_responses, ui_message_stream

VIEW_ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *openai_responses.ENDPOINTS,
    *openai_chat.ENDPOINTS,
    *ui_message_stream.ENDPOINTS,
    *agui.ENDPOINTS,
    *durable_streams.ENDPOINTS,
)
