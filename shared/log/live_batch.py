r"""The message of the live channel: a batch of events as ready SSE bytes, the id before them first.

    5204-117 5204-120 - synthesis:2 run:1\n
    id: 5204-118\n...

The head names the log's last id before the batch, the last id of it, `end` where the
run ends with it (else `-`), and how many events of which stage follow one another. A
subscriber whose position is the first takes the bytes as they are; any other id there
means that it missed something.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from stagebus.shared.domain.cursor import EventId


class LiveBatch(NamedTuple):
    """One append as the gateways see it; `stages` as it came, since only a stage's own stream looks into it."""

    before: EventId
    last: EventId
    is_end: bool
    stages: bytes
    frames: bytes

    def frames_of(self, stage_id: str) -> bytes:
        """The frames of one stage, and of the run's terminal event.

        Raises:
            ValueError: the batch is no batch.
        """
        frames = self.frames.split(b"\n\n")[:-1]  # a frame is one event: its data holds no blank line
        counts = (stage.rpartition(":") for stage in self.stages.decode().split(" "))
        owners = [stage for stage, _, count in counts for _ in range(int(count))]
        kept = [frame for frame, owner in zip(frames, owners, strict=False) if owner == stage_id]
        if self.is_end and stage_id != owners[-1]:
            kept.append(frames[-1])
        return b"".join([frame + b"\n\n" for frame in kept])


def encode(
    before: EventId, last: EventId, stage_ids: Sequence[str], frames: Sequence[bytes], *, is_end: bool = False
) -> bytes:
    """The message of a batch; `stage_ids` and `frames` go event by event."""
    if stage_ids.count(stage_ids[0]) == len(stage_ids):  # nearly every batch
        stages = f"{stage_ids[0]}:{len(stage_ids)}"
    else:
        stages = " ".join([f"{stage}:{len(list(group))}" for stage, group in groupby(stage_ids)])
    head = f"{before} {last} {'end' if is_end else '-'} {stages}\n"
    return head.encode() + b"".join(frames)


def decode(message: bytes) -> LiveBatch:
    """The batch that `encode` made; for every event that comes, so it parses no more than every stream needs.

    Raises:
        ValueError: it is none.
    """
    head, _, frames = message.partition(b"\n")
    # The two ids' dashes become spaces, so that one split takes the head apart.
    attempt, sequence, last_attempt, last_sequence, end, stages = head.replace(b"-", b" ", 2).split(b" ", 5)
    new = tuple.__new__  # what `EventId(…)` does after a Python call, which doubles its time
    before = new(EventId, (int(attempt), int(sequence)))
    last = new(EventId, (int(last_attempt), int(last_sequence)))
    return new(LiveBatch, (before, last, end == b"end", stages, frames))
