r"""The message of the live channel: a batch of events as ready SSE bytes, the id before them first.

    5204-117 5204-120 extraction:2 tools:1\n
    id: 5204-118\n...

The head names the log's last id before the batch, the last id of it, and how many
events of which stage follow one another. A subscriber whose position is the first
takes the bytes as they are; any other id there means that it missed something.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from shared.cursor import EventId, parse_id


class LiveBatch(NamedTuple):
    """One append as the gateways see it; `stages` are (stage id, number of events) in order."""

    before: EventId
    last: EventId
    stages: tuple[tuple[str, int], ...]
    frames: bytes

    def frames_of(self, stage_id: str) -> bytes:
        """The frames of one stage."""
        if len(self.stages) == 1:
            return self.frames if self.stages[0][0] == stage_id else b""
        frames = self.frames.split(b"\n\n")  # a frame is one event: its data holds no blank line
        kept: list[bytes] = []
        at = 0
        for stage, count in self.stages:
            if stage == stage_id:
                kept += frames[at : at + count]
            at += count
        return b"".join(frame + b"\n\n" for frame in kept)


def encode(before: EventId, last: EventId, stage_ids: Sequence[str], frames: Sequence[bytes]) -> bytes:
    """The message of a batch; `stage_ids` and `frames` go event by event."""
    stages = " ".join(f"{stage}:{len(list(group))}" for stage, group in groupby(stage_ids))
    return b"%b\n%b" % (f"{before} {last} {stages}".encode(), b"".join(frames))


def decode(message: bytes) -> LiveBatch:
    """The batch that `encode` made."""
    head, _, frames = message.partition(b"\n")
    before, last, *stages = head.decode().split(" ")
    pairs = (stage.rpartition(":") for stage in stages)
    return LiveBatch(parse_id(before), parse_id(last), tuple((name, int(count)) for name, _, count in pairs), frames)
