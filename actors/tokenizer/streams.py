"""A request in flight or kept, with its asker."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.microkernel import Request
from sgl_actors.actors.tokenizer.generation import Generation
from sgl_actors.actors.tokenizer.handover import LiveStream
from sgl_actors.errors import SglActorsError


class Stream:
    """A request in flight, or one that has ended and is kept, and the asker of the moment.

    Attributes:
        attended: somebody listens.
        deadline: when its asker wants it to have ended; None: whenever.
        resubmitted: the scheduler has been given it more than once, so it had a place there.
        out_of_step: it was submitted again because an update was missing; updates that do not fit are ignored until one does.
    """

    def __init__(
        self,
        generation: Generation,
        request: Request | None,
        deadline: float | None,
        *,
        resubmitted: bool = False,
    ) -> None:
        self.generation = generation
        self.attended = request is not None
        self.deadline = deadline
        self.resubmitted = resubmitted
        self.out_of_step = False
        self._request = request

    @property
    def id(self) -> str:
        """The request's id."""
        return self.generation.sequence.id

    @property
    def request(self) -> Request:
        """How to answer the asker of the moment, or the last one."""
        assert self._request is not None
        return self._request

    def fail(self, error: SglActorsError) -> None:
        """Tell the asker, if there is one."""
        if self._request is not None:
            self._request.fail(error)

    def state(self, now: float, request: int, kept: float | None) -> LiveStream:
        """For `handover`."""
        return msgspec.structs.replace(
            self.generation.state(),
            request=request,
            left=None if self.deadline is None else self.deadline - now,
            kept=kept,
            resubmitted=self.resubmitted,
        )
