"""What the tokenizer knows of a request: while it is prepared, and while it is in flight or kept."""

from __future__ import annotations

import asyncio

import msgspec

from sgl_actors.actors.microkernel import Message, Request
from sgl_actors.actors.tokenizer.generation import Generation
from sgl_actors.actors.tokenizer.handover import LiveStream, Question
from sgl_actors.actors.tokenizer.messages import Generate, Tokenize
from sgl_actors.errors import Cancelled, SglActorsError


class Preparation:
    """A request that is not admitted yet: its constraint is compiled, its prompt is tokenised in a thread, or no model is known."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False

    def cancel(self, why: str) -> None:
        """End it; of no effect on a request that is admitted or has failed."""
        if self.task is not None and self.task.done():
            return
        self.cancelled = True
        self.request.fail(Cancelled(why))
        if self.task is not None:
            self.task.cancel()


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


def essence(message: Message) -> Message:
    """What a request is, however much of its output the asker has."""
    return msgspec.structs.replace(message, output=[], known=-1) if isinstance(message, Generate) else message


def question(message: Message, request: int) -> Question:
    """What has been asked, for `handover`."""
    return Question(
        request,
        message if isinstance(message, Generate) else None,
        message if isinstance(message, Tokenize) else None,
    )
