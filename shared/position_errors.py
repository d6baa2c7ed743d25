"""Errors about positions that clients of views and of the feed give."""

from stagebus.shared.errors import BadCursor, StagebusError


class BadFeedCursor(BadCursor):
    """The `Last-Event-ID` is not the id of an entry of the feed."""

    def __init__(self) -> None:
        StagebusError.__init__(
            self,
            "the cursor of the feed must be the id of an entry, such as 1735689600000-1, or 0 for the oldest entry",
        )


class BadStartIndex(StagebusError):
    """The `startIndex` is not an integer, or the run has fewer chunks."""

    code = "bad_start_index"
    title = "Bad startIndex"
    status_hint = 400

    def __init__(self) -> None:
        super().__init__("startIndex must be an integer, at most the number of chunks that the run has given so far")


class BadOffset(StagebusError):
    """The `offset` of a durable stream has no valid form, or `live` is unknown or has no offset."""

    code = "bad_offset"
    title = "Bad offset"
    status_hint = 400

    def __init__(self, detail: str = "the offset must be a Stream-Next-Offset of this stream, -1 or now") -> None:
        super().__init__(detail)


class OffsetGone(StagebusError):
    """The log has no event at this `offset`: Redis lost it. Read again from the start."""

    code = "offset_gone"
    title = "Offset is gone"
    status_hint = 410

    def __init__(self) -> None:
        super().__init__("the log has no event at this offset: read the stream again from offset -1")
