"""The body of PATCH /threads/{thread_id}."""

from pydantic import Field

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.gateway.api.schemas.create_run import METADATA_MAX, MetadataKey, MetadataValue

TITLE_MAX_CHARS = 200


class ThreadChange(WireModel):
    """The fields that are to change; those that are left out stay as they are."""

    title: str | None = Field(
        default=None, max_length=TITLE_MAX_CHARS, description="a title for people; null or empty removes it"
    )
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        default=None,
        max_length=METADATA_MAX,
        description="all key-value pairs, in place of the stored ones; null removes them",
    )
