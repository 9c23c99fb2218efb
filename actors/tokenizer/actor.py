"""The tokenizer: the door to a node, where text becomes token ids and tokens become text.

Owns: the vocabulary and the chat template, and the half-decoded text of every request in flight.
In: `Generate` (stream of `Chunk`), `Tokenize`, `Detokenize`, `DescribeTokenizer`, `Cancel`; from the scheduler `Progress`; from the worker and the
grammar actor `DescribeVocabulary`, at their first constraint.
Out, to the scheduler: `Submit`, `Stop`, `Abort` (on the control lane, in order), `DescribeModel`; to the grammar actor `Compile`, before a
constrained request is submitted.
When it crashes: nothing is lost but time. Askers see it go down and send their `Generate` again with the tokens they have; the
text's state is rebuilt from those ids, and the scheduler, which has gone on, re-attaches the live request. When the scheduler goes down, requests
wait here and are submitted again, with their output so far, to the one that comes up.
When an asker goes, its request is aborted, unless it may be asked for again (`Generate.known`): then it goes on for a while (`kept`), and so stays its end.
A swap in place (`handover`) hands all of it over; nothing is under way here that could not be begun anew, so it is at rest as soon as it sends no chunks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar

import msgspec

from sgl_actors.actors.microkernel import Actor, Address, Context, Down, MailboxSpec, Message, Request, Up
from sgl_actors.actors.microkernel.swap import Snapshot
from sgl_actors.actors.scheduler.messages import (
    Abort,
    DescribeModel,
    Finish,
    ModelInfo,
    Progress,
    Sequence,
    Stop,
    Submit,
    Update,
)
from sgl_actors.actors.tokenizer import admission, constraints, prompts, vocabulary
from sgl_actors.actors.tokenizer.generation import Generation, OutOfStep
from sgl_actors.actors.tokenizer.handover import LAYOUT, LiveStream, Order, TokenizerState
from sgl_actors.actors.tokenizer.kept import Kept, read_options
from sgl_actors.actors.tokenizer.messages import (
    Cancel,
    DescribeTokenizer,
    DescribeVocabulary,
    Detokenize,
    Expire,
    Generate,
    Text,
    Texts,
    Tokenize,
    TokenizerInfo,
)
from sgl_actors.actors.tokenizer.streams import Preparation, Stream, essence, question
from sgl_actors.errors import (
    Cancelled,
    InvalidRequest,
    NotReady,
    Overloaded,
    ProtocolError,
    RemoteError,
    SglActorsError,
)

INLINE = 16_384
"""Characters that are tokenised on the loop (about 5 ms); longer texts go to a thread."""
RETRY = 0.1
"""Seconds between two questions to a scheduler that has no worker yet, and between two orders to one that takes no mail."""


PATIENCE = 30.0
"""Seconds that a request waits for the model to be known; after a restart of the tokenizer alone that takes milliseconds."""


class TokenizerActor(Actor):
    """See the module's docstring."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=8192)
    """More than a scheduler's `queue` lets wait, so that it is the scheduler that refuses."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._vocabulary: vocabulary.Vocabulary
        self._prompts: prompts.Prompts
        self._model: ModelInfo | None = None
        self._model_known = asyncio.Event()
        self._scheduler: Address | None = None
        self._live: dict[str, Stream] = {}
        self._preparing: dict[str, Preparation] = {}
        self._ending: Counter[str] = Counter()  # ended here; the scheduler's own end of them is still to come
        self._kept: Kept[Stream] = Kept(read_options(context.config))
        self._questions: dict[Request, Message] = {}  # those that a task works on
        self._outbox: list[Sequence] = []
        self._orders: deque[Stop | Abort] = deque()  # that the scheduler had no room for
        self._flush: asyncio.Handle | None = None
        self._timer: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting = False
        self._count: Counter[str] = Counter()

    async def start(self) -> None:
        """Load the vocabulary; `CheckpointError` if that cannot be."""
        began = self.ctx.now()
        self._vocabulary = await asyncio.to_thread(vocabulary.load, self.ctx.config["model"]["path"])
        self._prompts = prompts.Prompts(self._vocabulary)
        self.log.info(
            "vocabulary loaded", tokens=len(self._vocabulary), seconds=round(self.ctx.now() - began, 3)
        )
        self.ctx.watch(self.ctx.peer("scheduler"))

    async def stop(self) -> None:
        """Drop what has not been sent."""
        if self._flush is not None:
            self._flush.cancel()

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run beside the messages, until a successor takes over."""
        task = self.ctx.task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # A successor takes over; see `handover`.

    async def settle(self) -> None:
        """Send no chunks from here on: what an asker has must not change under a snapshot."""
        self._resting = True
        self._send_outbox()

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        now = self.ctx.now()
        requests: list[Request] = []

        def place(request: Request) -> int:
            requests.append(request)
            return len(requests) - 1

        kept = self._kept.left(now)
        left = {id(stream): seconds for stream, seconds in kept}
        streams = [*self._live.values()]
        streams += [stream for stream, _ in kept if self._live.get(stream.id) is not stream]
        state = TokenizerState(
            [
                stream.state(now, place(stream.request) if stream.attended else -1, left.get(id(stream)))
                for stream in streams
            ],
            [question(message, place(request)) for request, message in self._questions.items()],
            [Order(stop=one) if isinstance(one, Stop) else Order(abort=one) for one in self._orders],
            dict(self._ending),
            self._scheduler,
            self._model,
            dict(self._count),
        )
        return Snapshot.of(LAYOUT, state, requests=requests, vocabulary=self._vocabulary)

    async def restore(self, snapshot: Snapshot) -> None:
        """Take over, without a word to anybody: `_begin` follows once this object is in charge."""
        state = snapshot.read(LAYOUT, TokenizerState)
        requests: list[Request] = snapshot.handle("requests", list)
        found = snapshot.handles.get("vocabulary")
        self._vocabulary = (
            found
            if isinstance(found, vocabulary.Vocabulary)
            else await asyncio.to_thread(vocabulary.load, self.ctx.config["model"]["path"])
        )
        self._prompts = prompts.Prompts(self._vocabulary)
        self._scheduler, self._model = state.scheduler, state.model
        self._ending.update(state.ending)
        self._count.update(state.counts)
        dropped = [one for stream in state.streams for one in self._restore(stream, requests)]
        self._task(self._begin(state, requests, dropped), "begin")

    def _restore(self, state: LiveStream, requests: list[Request]) -> list[Stream]:
        """Go on with one request; returns those that cannot be kept any longer."""
        generation = Generation.restored(self._vocabulary, state)
        request = requests[state.request] if state.request >= 0 else None
        now = self.ctx.now()
        deadline = None if state.left is None else now + state.left
        stream = Stream(generation, request, deadline, resubmitted=state.resubmitted)
        if generation.finish is None or stream.attended:
            self._live[stream.id] = stream
        if state.kept is None or (generation.finish is not None and not generation.is_complete):
            return []
        return self._kept.add(stream.id, stream, generation.size, now, left=state.kept)

    async def _begin(self, state: TokenizerState, requests: list[Request], dropped: list[Stream]) -> None:
        """The predecessor has gone."""
        for stream in [*self._live.values()]:
            self._listen(stream)
        self._drop(dropped)
        self._set_timer()
        for order in state.orders:
            self._order(order.stop or order.abort or Abort([]))
        if self._model is not None:
            self._model_known.set()
        elif self._scheduler is not None:
            self._task(self._learn_model(self._scheduler), "learn model")
        for asked in state.questions:
            message = asked.generate or asked.tokenize or DescribeVocabulary()
            self._ask_again(message, requests[asked.request])
        for stream in [*self._live.values()]:
            self._emit(stream)

    def _ask_again(self, message: Message, request: Request) -> None:
        """Begin what the predecessor had begun."""
        try:
            match message:
                case Generate():
                    self._generate(message, request)
                case Tokenize():
                    self._question(request, message, partial(self._tokenise, message, request), "tokenise")
                case _:
                    self._question(
                        request, message, partial(self._describe_vocabulary, request), "vocabulary"
                    )
        except SglActorsError as error:
            request.fail(error)

    def resume(self) -> None:
        """Send what was held back."""
        self._resting = False
        for stream in [*self._live.values()]:
            if stream.attended and stream.request.cancelled:
                self._asker_gone(stream)
            else:
                self._emit(stream)

    async def leave(self) -> None:
        """Let go of the requests: what the kernel still tells this object of them means nothing."""
        self._live.clear()
        if self._flush is not None:
            self._flush.cancel()
        for task in [*self._tasks]:
            task.cancel()

    def statistics(self) -> dict[str, float]:
        """Requests, tokens and what the streams went through."""
        return {
            "num_live_requests": len(self._live),
            "num_preparing_requests": len(self._preparing),
            "num_kept_requests": len(self._kept),
            **{f"{name}_total": float(count) for name, count in self._count.items()},
        }

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Dispatch; see `messages`."""
        match message:
            case Progress():
                for update in message.updates:
                    self._progress(update)
            case Generate():
                self._generate(message, request)
            case Tokenize():
                if prompts.size(message) <= INLINE:
                    return self._prompts.tokenise(message)
                self._question(request, message, partial(self._tokenise, message, request), "tokenise")
            case Detokenize():
                return self._detokenise(message)
            case DescribeTokenizer():
                return self._describe()
            case DescribeVocabulary():
                self._question(request, message, partial(self._describe_vocabulary, request), "vocabulary")
            case Cancel():
                self._cancel(message)
            case Expire():
                self._expire()
            case Up():
                self._scheduler_up(message.address)
            case Down():
                if message.address == self._scheduler:
                    self._scheduler_down()
            case _:
                return await super().receive(message, request)
        return None

    def _question(
        self, request: Request, message: Message, work: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> None:
        """Work on an answer beside the messages."""
        self._questions[request] = message

        async def answer() -> None:
            try:
                await work()
            finally:
                self._questions.pop(request, None)

        self._task(answer(), name)

    # Requests come in.

    def _generate(self, message: Generate, request: Request) -> None:
        if request.kind != "stream":
            raise ProtocolError(f"Generate is asked as a stream, not as a {request.kind}")
        admission.check(message)
        checked = message.sampling.constraint is None and not message.sampling.stop_regex
        if self._model is not None and checked and prompts.size(message) <= INLINE:
            self._admit(message, self._prompts.ids(message), request)
        else:
            self._begin_preparation(message, request)

    def _begin_preparation(self, message: Generate, request: Request) -> None:
        if message.id in self._preparing:
            old = self._preparing[message.id]
            if essence(self._questions.get(old.request, message)) != essence(message):
                raise InvalidRequest(f"id {message.id} is in use by another request", param="id")
            old.cancel(f"another asker has taken over request {message.id}")
        preparation = self._preparing[message.id] = Preparation(request)
        request.on_cancel(partial(preparation.cancel, "its asker is gone"))
        self._question(
            request, message, partial(self._prepare, message, preparation), f"prepare {message.id}"
        )

    async def _prepare(self, message: Generate, preparation: Preparation) -> None:
        """Admit a request with a long prompt, a constraint or stop patterns, or one that came before the model was known."""
        request, preparation.task = preparation.request, asyncio.current_task()
        try:
            if preparation.cancelled:
                return
            await self._wait_for_model()
            assert self._model is not None
            prompts.check_size(message, self._vocabulary, self._model.context)
            if message.sampling.constraint is not None:
                await constraints.check_constraint(self.ctx, message.sampling.constraint, request)
            self._admit(message, await asyncio.to_thread(self._ids, message), request)
        except SglActorsError as error:
            request.fail(error)
        finally:
            if self._preparing.get(message.id) is preparation:
                del self._preparing[message.id]

    def _ids(self, message: Generate) -> list[int]:
        """The prompt's ids; runs in a thread."""
        constraints.check_stop_patterns(message.sampling)
        return self._prompts.ids(message)

    async def _wait_for_model(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._model_known.wait()
        except TimeoutError:
            raise NotReady("no model is loaded yet") from None

    def _admit(self, message: Generate, prompt: list[int], request: Request) -> None:
        assert self._model is not None
        sequence = admission.admit(
            message,
            prompt,
            model=self._model,
            eos_ids=self._vocabulary.eos_ids or self._model.eos_ids,
            seed=secrets.randbits(63),
            timeout=request.remaining or 0.0,
            trace=request.trace,
        )
        old = self._live.get(message.id) or self._kept.get(message.id)
        if old is not None and self._rejoin(old, message, sequence, request):
            return
        generation = Generation(self._vocabulary, sequence, message.sampling, message.known)
        self._count["requests"] += 1
        self._count["prompt_tokens"] += len(prompt)
        stream = Stream(generation, request, self._deadline(request))
        self._attach(stream)
        if generation.finish is not None:
            self._emit(stream)
        else:
            self._submit(sequence)

    def _rejoin(self, old: Stream, message: Generate, sequence: Sequence, request: Request) -> bool:
        """Have a new asker take over a request, if it asks for the very same; False: let it begin anew.

        Raises:
            InvalidRequest: the request is live, and another one.
        """
        live = self._live.get(old.id) is old
        generation = old.generation
        known = generation.sequence
        same = (known.prompt, known.tenant, known.salt, known.logprobs, generation.options) == (
            sequence.prompt,
            sequence.tenant,
            sequence.salt,
            sequence.logprobs,
            message.sampling,
        )
        if live and not (same and generation.begins_with(sequence.output)):
            raise InvalidRequest(f"id {sequence.id} is in use by another request", param="id")
        self._kept.take(old.id)
        if not (same and generation.begins_with(sequence.output)):
            return False
        taken_over = Cancelled(f"another asker has taken over request {sequence.id}")
        if not generation.can_tell(sequence.output):
            if live:
                self._let_go(old)
                old.fail(taken_over)
            return False
        generation.rejoin(sequence.output, message.known)
        stream = Stream(generation, request, self._deadline(request), resubmitted=old.resubmitted)
        self._attach(stream)
        old.fail(taken_over)
        self._count["rejoined"] += 1
        self._emit(stream)
        return True

    def _deadline(self, request: Request) -> float | None:
        return None if request.remaining is None else self.ctx.now() + request.remaining

    def _attach(self, stream: Stream) -> None:
        self._live[stream.id] = stream
        self._listen(stream)

    def _listen(self, stream: Stream) -> None:
        """Hear of its asker."""
        if stream.attended:
            stream.request.on_credit(partial(self._emit, stream))
            stream.request.on_cancel(partial(self._asker_gone, stream))

    # Nobody listens.

    def _asker_gone(self, stream: Stream) -> None:
        """The asker cancelled, died or ran out of time."""
        if self._resting or self._live.get(stream.id) is not stream or not stream.attended:
            return
        late = stream.deadline is not None and self.ctx.now() >= stream.deadline
        if stream.generation.known < 0 or late:
            self._let_go(stream)
        else:
            self._keep(stream)

    def _let_go(self, stream: Stream) -> None:
        """End a live request."""
        del self._live[stream.id]
        self._count["cancelled"] += 1
        waiting = [sequence for sequence in self._outbox if sequence.id != stream.id]
        if len(waiting) < len(self._outbox):
            self._outbox = waiting
        elif self._scheduler is not None:
            self._ending[stream.id] += 1
            self._order(Abort([stream.id]))

    def _keep(self, stream: Stream) -> None:
        """Keep a request, or its end, until somebody comes back for it."""
        stream.attended = False
        self._drop(self._kept.add(stream.id, stream, stream.generation.size, self.ctx.now()))
        self._set_timer()

    def _drop(self, streams: list[Stream]) -> None:
        """Nobody came back for them."""
        for stream in streams:
            if self._live.get(stream.id) is stream:
                self._let_go(stream)

    def _set_timer(self) -> None:
        until = self._kept.next()
        if self._timer is None and until is not None:
            self._timer = self.ctx.after(max(0.0, until - self.ctx.now()), Expire())

    def _expire(self) -> None:
        self._timer = None
        self._drop(self._kept.expired(self.ctx.now()))
        self._set_timer()

    # Requests go to the scheduler.

    def _submit(self, sequence: Sequence) -> None:
        """Send with all others of this turn of the loop; while no scheduler is up, `_scheduler_up` will."""
        if self._scheduler is None:
            return
        self._outbox.append(sequence)
        if self._resting:
            self._send_outbox()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._send_outbox)

    def _send_outbox(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        sequences, self._outbox = self._outbox, []
        if not sequences:
            return
        try:
            self.ctx.cast(self.ctx.peer("scheduler"), Submit(sequences), control=True)
        except Overloaded as error:
            for stream in [self._live[one.id] for one in sequences if one.id in self._live]:
                self._refused(stream, error)

    def _refused(self, stream: Stream, error: SglActorsError) -> None:
        """The scheduler has no place for a request. One that had its place before a fault is submitted until it has it again."""
        if stream.resubmitted:
            self._task(self._resubmit_later(stream), f"submit {stream.id}")
            return
        del self._live[stream.id]
        self._kept.take(stream.id)
        stream.fail(error)

    async def _resubmit_later(self, stream: Stream) -> None:
        scheduler = self._scheduler
        await asyncio.sleep(RETRY)
        if self._live.get(stream.id) is stream and scheduler == self._scheduler:
            self._resubmit(stream)

    def _order(self, message: Stop | Abort) -> None:
        """Cast to the scheduler after all that was submitted and ordered before; waits for room in the background."""
        self._send_outbox()
        self._orders.append(message)
        if len(self._orders) == 1 and not self._send_orders():
            self.log.warning("scheduler takes no mail", order=type(message).__name__)
            self._task(self._order_later(self._scheduler), "order")

    def _send_orders(self) -> bool:
        """Send what there is room for; whether that was all."""
        while self._orders:
            try:
                self.ctx.cast(self.ctx.peer("scheduler"), self._orders[0], control=True)
            except Overloaded:
                return False
            self._orders.popleft()
        return True

    async def _order_later(self, scheduler: Address | None) -> None:
        """Until all are sent, or that scheduler and all its requests are gone."""
        while scheduler is not None and scheduler == self._scheduler:
            await asyncio.sleep(RETRY)
            if scheduler == self._scheduler and self._send_orders():
                return

    def _cancel(self, message: Cancel) -> None:
        """Pass an operator's cancellation on, of what is with the scheduler; its `Update` ends the streams."""
        known = {
            **dict.fromkeys(self._preparing),
            **dict.fromkeys(self._live),
            **dict.fromkeys(self._kept.keys()),
        }
        heads = tuple(f"{stem}-" for stem in message.stems)
        ids = [one for one in message.ids if one in known]
        if message.all or heads:
            ids += [one for one in known if message.all or one.startswith(heads)]
        for request_id in ids:
            if request_id in self._preparing:
                self._preparing.pop(request_id).cancel(f"request {request_id} was cancelled")
            if request_id not in self._live:
                self._kept.take(request_id)
        live = list(dict.fromkeys(one for one in ids if one in self._live))
        if self._scheduler is not None:
            if message.all or live:
                self._order(Abort([] if message.all else live, message.all))
            return
        for request_id in live:
            stream = self._live[request_id]
            end = Finish("abort", code=Cancelled.code, message="cancelled while the scheduler was down")
            stream.generation.update(Update(request_id, len(stream.generation.ids), [], finish=end))
            self._emit(stream)

    # The scheduler comes, goes and answers.

    def _scheduler_up(self, address: Address) -> None:
        if address == self._scheduler:
            return
        self._scheduler_down()
        self._scheduler = address
        for stream in self._live.values():
            self._resubmit(stream)
        self._task(self._learn_model(address), "learn model")

    def _scheduler_down(self) -> None:
        self._scheduler = None
        self._ending.clear()
        self._outbox.clear()
        self._orders.clear()

    def _resubmit(self, stream: Stream) -> None:
        """Have the scheduler go on with a request it has lost, or that we have lost track of."""
        self._count["resubmitted"] += 1
        stream.resubmitted = True
        timeout = 0.0 if stream.deadline is None else max(0.001, stream.deadline - self.ctx.now())
        self._submit(msgspec.structs.replace(stream.generation.resubmission(), timeout=timeout))

    async def _learn_model(self, scheduler: Address) -> None:
        """Ask what is served until there is an answer, or another scheduler."""
        while self._scheduler == scheduler:
            try:
                self._model = await self.ctx.call(
                    self.ctx.peer("scheduler"), DescribeModel(), ModelInfo, timeout=10.0
                )
            except SglActorsError as error:
                self.log.debug("no model yet", error=error.message)
                await asyncio.sleep(RETRY)
            else:
                self._model_known.set()
                return

    def _progress(self, update: Update) -> None:
        """Take one request's news; whatever goes wrong in it is that request's alone."""
        if self._ending[update.id] or update.id not in self._live:
            if update.finish is not None:
                self._ending -= Counter((update.id,))
            return
        stream = self._live[update.id]
        if stream.resubmitted and update.finish is not None and update.finish.code == Overloaded.code:
            self._refused(stream, Overloaded(update.finish.message))
            return
        before = len(stream.generation.ids)
        try:
            stop = stream.generation.update(update)
        except OutOfStep:
            if not stream.out_of_step:
                stream.out_of_step = True
                self._resubmit(stream)
            return
        except InvalidRequest as error:
            self._give_up(stream, update, error)
            return
        except Exception as error:
            self.log.exception("a request failed", request=update.id)
            self._give_up(stream, update, RemoteError(f"tokenizer: {type(error).__name__}"))
            return
        stream.out_of_step = False
        self._count["generation_tokens"] += len(stream.generation.ids) - before
        if stop is not None:
            self._count["stop_strings"] += 1
            if update.finish is None:
                self._ending[update.id] += 1
                self._order(stop)
        self._emit(stream)

    def _give_up(self, stream: Stream, update: Update, error: SglActorsError) -> None:
        """One request cannot go on."""
        del self._live[stream.id]
        self._kept.take(stream.id)
        stream.fail(error)
        self._ending[stream.id] += update.finish is None
        self._order(Abort([stream.id]))

    def _emit(self, stream: Stream) -> None:
        """Send what is new, as far as the asker takes it; what it does not take merges into the next chunk."""
        if self._resting or self._live.get(stream.id) is not stream:
            return
        generation = stream.generation
        while stream.attended and generation.has_news:
            if generation.finish is not None and not generation.pauses:
                stream.request.end(generation.chunk())
                break
            if stream.request.credit <= 0:
                self._count["chunks_held"] += 1
                return
            stream.request.item(generation.chunk())
            self._count["chunks"] += 1
        if generation.finish is not None:
            self._ended(stream)

    def _ended(self, stream: Stream) -> None:
        """All of it has been told, or nobody listens; who comes back for it gets the same again."""
        del self._live[stream.id]
        if stream.generation.known < 0 or not stream.generation.is_complete:
            self._kept.take(stream.id)
        elif stream.attended:
            self._keep(stream)

    # Questions.

    async def _tokenise(self, message: Tokenize, request: Request) -> None:
        """Answer for a long text."""
        try:
            request.reply(await asyncio.to_thread(self._prompts.tokenise, message))
        except SglActorsError as error:
            request.fail(error)

    async def _describe_vocabulary(self, request: Request) -> None:
        """Answer, once the model is known: it may have to name the end tokens."""
        try:
            await self._wait_for_model()
            assert self._model is not None
            request.reply(
                await asyncio.to_thread(constraints.describe, self._vocabulary, self._model.eos_ids)
            )
        except SglActorsError as error:
            request.fail(error)

    def _detokenise(self, message: Detokenize) -> Message:
        ids, skip = message.token_ids, message.skip_special_tokens
        known = max(len(self._vocabulary), self._model.vocabulary if self._model is not None else 0)
        wrong = next((i for i in ids if not 0 <= i < known), None)
        if wrong is not None:
            raise InvalidRequest(f"{wrong} is no token id; the vocabulary has {known}", param="tokens")
        if not message.each:
            return Text(self._vocabulary.decode(ids, skip_special_tokens=skip))
        raw = self._vocabulary.bytes_of(ids, skip_special_tokens=skip)
        return Texts([piece.decode("utf-8", "replace") for piece in raw], raw)

    def _describe(self) -> TokenizerInfo:
        tokens = self._vocabulary.tokens
        return TokenizerInfo(
            bos_token=tokens.get("bos_token"),
            eos_token=tokens.get("eos_token"),
            pad_token=tokens.get("pad_token"),
            chat_template=self._vocabulary.chat_template,
            vocabulary=len(self._vocabulary),
        )
