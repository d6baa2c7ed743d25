r"""The message of the live channel: a batch of events as finished SSE bytes, preceded by the id before them.

    5204-117 5204-120 - synthesis:2 run:1\n
    id: 5204-118\n...

The head has the log's last id before the batch, the batch's last id, `end` if the batch ends the run (else `-`), and
the number of consecutive events of each stage. A subscriber whose position equals the first id forwards the bytes as
they are; any other id there means that it missed something.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from stagebus.shared.domain.cursor import EventId

_ID_AT, _NAME_AT, _DATA_AT = (len(prefix) for prefix in (b"id: ", b"event: ", b"data: "))  # a frame's three lines
_END = len(b"\n\n")


class LiveBatch(NamedTuple):
    """One append as gateways receive it; `stages` is not parsed, since only streams of one stage need it."""

    before: EventId
    last: EventId
    is_end: bool
    stages: bytes
    frames: bytes

    def events(self) -> list[tuple[bytes, bytes, bytes]]:
        """Returns the id, the name and the data of each event."""
        if self.last.sequence - self.before.sequence == 1:  # nearly every batch
            id_line, name_line, data_line = self.frames.split(b"\n", 2)
            return [(id_line[_ID_AT:], name_line[_NAME_AT:], data_line[_DATA_AT:-_END])]
        return events_in(self.frames)

    def frames_of(self, stage_id: str) -> bytes:
        """Returns the frames of one stage and of the run's terminal event.

        Raises:
            ValueError: the batch is malformed.
        """
        frames = self.frames.split(b"\n\n")[:-1]  # a frame is one event: its data has no blank line
        counts = (stage.rpartition(":") for stage in self.stages.decode().split(" "))
        owners = [stage for stage, _, count in counts for _ in range(int(count))]
        kept = [frame for frame, owner in zip(frames, owners, strict=False) if owner == stage_id]
        if self.is_end and stage_id != owners[-1]:
            kept.append(frames[-1])
        return b"".join([frame + b"\n\n" for frame in kept])


def events_in(frames: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Returns the id, the name and the data of each event of complete frames."""
    events = []
    for frame in frames.split(b"\n\n")[:-1]:  # a frame is one event: its data has no blank line
        id_line, name_line, data_line = frame.split(b"\n", 2)
        events.append((id_line[_ID_AT:], name_line[_NAME_AT:], data_line[_DATA_AT:]))
    return events


def encode(
    before: EventId, last: EventId, stage_ids: Sequence[str], frames: Sequence[bytes], *, is_end: bool = False
) -> bytes:
    """Encodes a batch; `stage_ids` and `frames` have one element per event."""
    if stage_ids.count(stage_ids[0]) == len(stage_ids):  # nearly every batch
        stages = f"{stage_ids[0]}:{len(stage_ids)}"
    else:
        stages = " ".join([f"{stage}:{len(list(group))}" for stage, group in groupby(stage_ids)])
    head = f"{before} {last} {'end' if is_end else '-'} {stages}\n"
    return head.encode() + b"".join(frames)


def decode(message: bytes) -> LiveBatch:
    """Decodes a message of `encode`. It runs for every batch, so it parses only what every stream needs.

    Raises:
        ValueError: the message is malformed.
    """
    head, _, frames = message.partition(b"\n")
    # The dashes of the two ids become spaces, so that one split parses the head.
    attempt, sequence, last_attempt, last_sequence, end, stages = head.replace(b"-", b" ", 2).split(b" ", 5)
    new = tuple.__new__  # as `EventId(…)`, without the Python call that doubles its time
    before = new(EventId, (int(attempt), int(sequence)))
    last = new(EventId, (int(last_attempt), int(last_sequence)))
    return new(LiveBatch, (before, last, end == b"end", stages, frames))
