"""Requests at the scheduler: they are submitted, submitted again after a fault, and their progress comes in."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec

from sgl_actors.actors.microkernel import Address, Context
from sgl_actors.actors.scheduler.messages import Abort, Sequence, Stop, Update
from sgl_actors.actors.tokenizer.delivery import Delivery
from sgl_actors.actors.tokenizer.generation import OutOfStep
from sgl_actors.actors.tokenizer.outbox import RETRY, Outbox, Spawn
from sgl_actors.actors.tokenizer.streams import Stream
from sgl_actors.errors import InvalidRequest, Overloaded, RemoteError, SglActorsError


class Submissions:
    """Keeps the scheduler of the moment at work on all requests of `delivery`, and passes on what it says of them.

    Attributes:
        outbox: on its way there.
        ending: requests ended here whose end by the scheduler is still to come, and how many times.
    """

    def __init__(self, ctx: Context, delivery: Delivery, counts: Counter[str], spawn: Spawn) -> None:
        self.outbox = Outbox(ctx, spawn, self._no_room)
        self.ending: Counter[str] = Counter()
        self._ctx = ctx
        self._delivery = delivery
        self._counts = counts
        self._spawn = spawn

    @property
    def scheduler(self) -> Address | None:
        """Which incarnation has them; None while none is up."""
        return self.outbox.scheduler

    def up(self, scheduler: Address) -> None:
        """Another incarnation is up: it knows of none of them."""
        self.down()
        self.outbox.point(scheduler)
        for stream in self._delivery.live.values():
            self.resubmit(stream)

    def down(self) -> None:
        """The scheduler is gone, and all it knew."""
        self.ending.clear()
        self.outbox.point(None)

    def submit(self, sequence: Sequence) -> None:
        """A request is new; while no scheduler is up, `up` will submit it."""
        self.outbox.submit(sequence)

    def resubmit(self, stream: Stream) -> None:
        """Have the scheduler go on with a request it has lost, or that we have lost track of."""
        self._counts["resubmitted"] += 1
        stream.resubmitted = True
        timeout = 0.0 if stream.deadline is None else max(0.001, stream.deadline - self._ctx.now())
        self.submit(msgspec.structs.replace(stream.generation.resubmission(), timeout=timeout))

    def abandon(self, request: str) -> None:
        """Nobody wants it any more."""
        if not self.outbox.take_back(request) and self.scheduler is not None:
            self.ending[request] += 1
            self.outbox.order(Abort([request]))

    def progress(self, update: Update) -> None:
        """Take one request's news; whatever goes wrong in it is that request's alone."""
        stream = self._delivery.live.get(update.id)
        if self.ending[update.id] or stream is None:
            if update.finish is not None:
                self.ending -= Counter((update.id,))
            return
        if stream.resubmitted and update.finish is not None and update.finish.code == Overloaded.code:
            self._refused(stream, Overloaded(update.finish.message))
            return
        before = len(stream.generation.ids)
        try:
            stop = stream.generation.update(update)
        except OutOfStep:
            if not stream.out_of_step:
                stream.out_of_step = True
                self.resubmit(stream)
        except InvalidRequest as error:
            self._give_up(stream, update, error)
        except Exception as error:
            self._ctx.log.exception("a request failed", request=update.id)
            self._give_up(stream, update, RemoteError(f"tokenizer: {type(error).__name__}"))
        else:
            stream.out_of_step = False
            self._counts["generation_tokens"] += len(stream.generation.ids) - before
            if stop is not None:
                self._stop(stop, ended=update.finish is not None)
            self._delivery.emit(stream)

    def _stop(self, stop: Stop, *, ended: bool) -> None:
        """A stop string or pattern has ended a request here; the scheduler may not know that yet."""
        self._counts["stop_strings"] += 1
        if not ended:
            self.ending[stop.id] += 1
            self.outbox.order(stop)

    def _give_up(self, stream: Stream, update: Update, error: SglActorsError) -> None:
        """One request cannot go on."""
        self._delivery.fail(stream, error)
        self.ending[stream.id] += update.finish is None
        self.outbox.order(Abort([stream.id]))

    def _no_room(self, sequences: list[Sequence], error: Overloaded) -> None:
        live = self._delivery.live
        for stream in [live[one.id] for one in sequences if one.id in live]:
            self._refused(stream, error)

    def _refused(self, stream: Stream, error: SglActorsError) -> None:
        """The scheduler has no place for a request. One that had its place before a fault is submitted until it has it again."""
        if stream.resubmitted:
            self._spawn(self._resubmit_later(stream), f"submit {stream.id}")
        else:
            self._delivery.fail(stream, error)

    async def _resubmit_later(self, stream: Stream) -> None:
        scheduler = self.scheduler
        await asyncio.sleep(RETRY)
        if self._delivery.live.get(stream.id) is stream and scheduler == self.scheduler:
            self.resubmit(stream)
