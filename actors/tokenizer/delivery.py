"""Requests in flight and those that are kept, and the askers who listen to them, go, and come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from sgl_actors.actors.microkernel import Context, Request
from sgl_actors.actors.scheduler.messages import Sequence
from sgl_actors.actors.tokenizer.generation import Generation
from sgl_actors.actors.tokenizer.handover import LiveStream
from sgl_actors.actors.tokenizer.kept import Kept, Options
from sgl_actors.actors.tokenizer.messages import Expire, Generate
from sgl_actors.actors.tokenizer.streams import Stream
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.errors import Cancelled, InvalidRequest, SglActorsError


class Delivery:
    """Sends chunks as fast as askers take them. When an asker goes, its request is let go, or kept for a while if it may be asked for again (`kept`).

    Attributes:
        live: in flight, or ended with chunks left that the asker has not taken.
        kept: nobody listens to those, or they have ended.
        resting: send nothing, and do not notice askers that go.
    """

    def __init__(
        self, ctx: Context, options: Options, counts: Counter[str], abandon: Callable[[str], None]
    ) -> None:
        """`abandon` is told the id of a request that nobody wants any more."""
        self.live: dict[str, Stream] = {}
        self.kept: Kept[Stream] = Kept(options)
        self.resting = False
        self._ctx = ctx
        self._counts = counts
        self._abandon = abandon
        self._timer: Callable[[], None] | None = None

    # -- askers come --------------------------------------------------------------------------------------

    def begin(self, generation: Generation, request: Request, *, resubmitted: bool = False) -> Stream:
        """Somebody listens to that from now on."""
        deadline = None if request.remaining is None else self._ctx.now() + request.remaining
        stream = Stream(generation, request, deadline, resubmitted=resubmitted)
        self.live[stream.id] = stream
        self._listen(stream)
        return stream

    def rejoin(self, message: Generate, sequence: Sequence, request: Request) -> bool:
        """Have a new asker take over a live or kept request, if it asks for the very same; False: let it begin anew.

        Raises:
            InvalidRequest: the request is live, and another one.
        """
        old = self.live.get(sequence.id) or self.kept.get(sequence.id)
        if old is None:
            return False
        live, generation = self.live.get(old.id) is old, old.generation
        same = generation.asks_for(sequence, message.sampling) and generation.begins_with(sequence.output)
        if live and not same:
            raise InvalidRequest(f"id {sequence.id} is in use by another request", param="id")
        self.kept.take(old.id)
        if not same:
            return False
        taken_over = Cancelled(f"another asker has taken over request {sequence.id}")
        if not generation.can_tell(sequence.output):
            if live:
                self._let_go(old)
                old.fail(taken_over)
            return False
        generation.rejoin(sequence.output, message.known)
        stream = self.begin(generation, request, resubmitted=old.resubmitted)
        old.fail(taken_over)
        self._counts["rejoined"] += 1
        self.emit(stream)
        return True

    def _listen(self, stream: Stream) -> None:
        """Hear of its asker."""
        if stream.attended:
            stream.request.on_credit(partial(self.emit, stream))
            stream.request.on_cancel(partial(self._asker_gone, stream))

    # -- they are told ------------------------------------------------------------------------------------

    def emit(self, stream: Stream) -> None:
        """Send what is new, as far as the asker takes it; what it does not take merges into the next chunk."""
        if self.resting or self.live.get(stream.id) is not stream:
            return
        generation = stream.generation
        while stream.attended and generation.has_news:
            if generation.finish is not None and not generation.pauses:
                stream.request.end(generation.chunk())
                break
            if stream.request.credit <= 0:
                self._counts["chunks_held"] += 1
                return
            stream.request.item(generation.chunk())
            self._counts["chunks"] += 1
        if generation.finish is not None:
            self._ended(stream)

    def fail(self, stream: Stream, error: SglActorsError) -> None:
        """A live request cannot go on; it is not kept either."""
        del self.live[stream.id]
        self.kept.take(stream.id)
        stream.fail(error)

    def _ended(self, stream: Stream) -> None:
        """All of it has been told, or nobody listens; who comes back for it gets the same again."""
        del self.live[stream.id]
        if stream.generation.known < 0 or not stream.generation.is_complete:
            self.kept.take(stream.id)
        elif stream.attended:
            self._keep(stream)

    # -- they go ------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """The time of some that were kept is up."""
        self._timer = None
        self._drop(self.kept.expired(self._ctx.now()))
        self._set_timer()

    def _asker_gone(self, stream: Stream) -> None:
        """The asker cancelled, died or ran out of time."""
        if self.resting or self.live.get(stream.id) is not stream or not stream.attended:
            return
        late = stream.deadline is not None and self._ctx.now() >= stream.deadline
        if stream.generation.known < 0 or late:
            self._let_go(stream)
        else:
            self._keep(stream)

    def _let_go(self, stream: Stream) -> None:
        """End a live request."""
        del self.live[stream.id]
        self._counts["cancelled"] += 1
        self._abandon(stream.id)

    def _keep(self, stream: Stream) -> None:
        """Keep a request, or its end, until somebody comes back for it."""
        stream.attended = False
        self._drop(self.kept.add(stream.id, stream, stream.generation.size, self._ctx.now()))
        self._set_timer()

    def _drop(self, streams: list[Stream]) -> None:
        """Nobody came back for them."""
        for stream in streams:
            if self.live.get(stream.id) is stream:
                self._let_go(stream)

    def _set_timer(self) -> None:
        until = self.kept.next()
        if self._timer is None and until is not None:
            self._timer = self._ctx.after(max(0.0, until - self._ctx.now()), Expire())

    # -- a successor --------------------------------------------------------------------------------------

    def state(self, now: float, place: Callable[[Request], int]) -> list[LiveStream]:
        """All of them; `place` puts a `Request` where the successor finds it."""
        kept = self.kept.left(now)
        left = {id(stream): seconds for stream, seconds in kept}
        streams = [*self.live.values()]
        streams += [stream for stream, _ in kept if self.live.get(stream.id) is not stream]
        return [
            stream.state(now, place(stream.request) if stream.attended else -1, left.get(id(stream)))
            for stream in streams
        ]

    def take(self, state: LiveStream, request: Request | None, vocabulary: Vocabulary) -> list[Stream]:
        """Go on with one of another's, once this object is in charge (`take_over`); returns those that cannot be kept any longer."""
        generation = Generation.restored(vocabulary, state)
        now = self._ctx.now()
        deadline = None if state.left is None else now + state.left
        stream = Stream(generation, request, deadline, resubmitted=state.resubmitted)
        if generation.finish is None or stream.attended:
            self.live[stream.id] = stream
        if state.kept is None or (generation.finish is not None and not generation.is_complete):
            return []
        return self.kept.add(stream.id, stream, generation.size, now, left=state.kept)

    def take_over(self, dropped: list[Stream]) -> None:
        """This object is in charge: hear of the askers, and let go what cannot be kept."""
        for stream in [*self.live.values()]:
            self._listen(stream)
        self._drop(dropped)
        self._set_timer()

    def emit_all(self) -> None:
        """Send what there is to all."""
        for stream in [*self.live.values()]:
            self.emit(stream)

    def resume(self) -> None:
        """Undo `resting`: send what was held back, notice who has gone."""
        self.resting = False
        for stream in [*self.live.values()]:
            if stream.attended and stream.request.cancelled:
                self._asker_gone(stream)
            else:
                self.emit(stream)
