"""Stored events as server-sent events: the bytes as the worker made them."""

from typing import Final

from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import Page


class MergedView:
    """The run's merged stream: every stage's events in the order of their sequence."""

    def of_page(self, page: Page) -> bytes:
        """Every event of the page."""
        return page.frames()

    def of_batch(self, batch: LiveBatch) -> bytes:
        """The frames of the batch, shared by all subscribers."""
        return batch.frames


class StageView:
    """One stage's stream; the run's terminal event is its last."""

    def __init__(self, stage_id: str) -> None:
        self._stage_id = stage_id

    def of_page(self, page: Page) -> bytes:
        """The page, which was read for this stage alone."""
        return page.frames()

    def of_batch(self, batch: LiveBatch) -> bytes:
        """The batch's frames of this stage."""
        return batch.frames_of(self._stage_id)


MERGED: Final = MergedView()
