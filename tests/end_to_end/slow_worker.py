"""The fake worker at the pace of a real one, for nodes in processes of their own."""

from __future__ import annotations

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.worker.fake import FakeWorker

STEP = 0.2
"""Seconds of a step."""


class SlowWorker(FakeWorker):
    """A step takes `STEP` seconds."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.delay = STEP
