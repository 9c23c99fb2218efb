"""The tokenizer: the door to a node, where text becomes token ids and tokens become text.

Owns: the vocabulary and the chat template, and the half-decoded text of every request in flight.
In: `Generate` (stream of `Chunk`), `Tokenize`, `Detokenize`, `DescribeTokenizer`, `Cancel`; from the scheduler `Progress`; from the worker and the
grammar actor `DescribeVocabulary`, at their first constraint.
Out, to the scheduler: `Submit`, `Stop`, `Abort` (on the control lane, in order), `DescribeModel`; to the grammar actor `Compile`, before a
constrained request is submitted.
When it crashes: nothing is lost but time. Askers see it go down and send their `Generate` again with the tokens they have; the
text's state is rebuilt from those ids, and the scheduler, which has gone on, re-attaches the live request. When the scheduler goes down, requests
wait here and are submitted again, with their output so far, to the one that comes up.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from functools import partial
from typing import ClassVar

import msgspec

from sgl_actors.actors.microkernel import Actor, Address, Context, Down, MailboxSpec, Message, Request, Up
from sgl_actors.actors.scheduler.messages import (
    Abort,
    DescribeModel,
    Finish,
    ModelInfo,
    Progress,
    Sequence,
    Submit,
    Update,
)
from sgl_actors.actors.tokenizer import admission, constraints, prompts, vocabulary
from sgl_actors.actors.tokenizer.generation import Generation, OutOfStep
from sgl_actors.actors.tokenizer.messages import (
    Cancel,
    DescribeTokenizer,
    DescribeVocabulary,
    Detokenize,
    Generate,
    Text,
    Texts,
    Tokenize,
    TokenizerInfo,
)
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
        self._live: dict[str, _Stream] = {}
        self._preparing: dict[str, _Preparation] = {}
        self._ending: Counter[str] = Counter()  # ended here; the scheduler's own end of them is still to come
        self._outbox: list[Sequence] = []
        self._flush: asyncio.Handle | None = None
        self._count: Counter[str] = Counter()

    async def start(self) -> None:
        """Load the vocabulary; `CheckpointError` if that cannot be."""
        began = self.ctx.now()
        self._vocabulary = await asyncio.to_thread(vocabulary.load, self.ctx.config["model"]["path"])
        self._prompts = prompts.Prompts(self._vocabulary)
        self.log.info(
            "vocabulary loaded", tokens=len(self._vocabulary), seconds=round(self.ctx.now() - began, 3)
        )
        self.ctx.watch("scheduler")

    async def stop(self) -> None:
        """Drop what has not been sent."""
        if self._flush is not None:
            self._flush.cancel()

    def statistics(self) -> dict[str, float]:
        """Requests, tokens and what the streams went through."""
        return {
            "num_live_requests": len(self._live),
            "num_preparing_requests": len(self._preparing),
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
                self.ctx.task(self._tokenise(message, request), name="tokenise")
            case Detokenize():
                return self._detokenise(message)
            case DescribeTokenizer():
                return self._describe()
            case DescribeVocabulary():
                self.ctx.task(self._describe_vocabulary(request), name="describe vocabulary")
            case Cancel():
                self._cancel(message)
            case Up():
                self._scheduler_up(message.address)
            case Down():
                if message.address == self._scheduler:
                    self._scheduler_down()
            case _:
                return await super().receive(message, request)
        return None

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
            self._preparing[message.id].cancel(f"another asker has taken over request {message.id}")
        preparation = self._preparing[message.id] = _Preparation(request)
        request.on_cancel(partial(preparation.cancel, "its asker is gone"))
        self.ctx.task(self._prepare(message, preparation), name=f"prepare {message.id}")

    async def _prepare(self, message: Generate, preparation: _Preparation) -> None:
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
        live = self._live.get(message.id)
        if live is not None:
            self._rejoin(live, message, sequence, request)
            return
        stream = _Stream(Generation(self._vocabulary, sequence, message.sampling), request)
        self._count["requests"] += 1
        self._count["prompt_tokens"] += len(prompt)
        if stream.generation.finish is not None:
            self._emit(stream)
            return
        self._attach(stream)
        self._submit(sequence)

    def _rejoin(self, live: _Stream, message: Generate, sequence: Sequence, request: Request) -> None:
        """A new asker takes over a live request, if it asks for the very same."""
        known = live.generation.sequence
        same = (known.prompt, known.tenant, known.salt, known.logprobs, live.generation.options) == (
            sequence.prompt,
            sequence.tenant,
            sequence.salt,
            sequence.logprobs,
            message.sampling,
        )
        if not same or not live.generation.rejoin(sequence.output):
            raise InvalidRequest(f"id {sequence.id} is in use by another request", param="id")
        stream = _Stream(live.generation, request)
        self._attach(stream)
        live.request.fail(Cancelled(f"another asker has taken over request {sequence.id}"))
        self._count["rejoined"] += 1
        self._emit(stream)

    def _attach(self, stream: _Stream) -> None:
        self._live[stream.id] = stream
        stream.request.on_credit(partial(self._emit, stream))
        stream.request.on_cancel(partial(self._asker_gone, stream))

    # Requests go to the scheduler.

    def _submit(self, sequence: Sequence) -> None:
        """Send with all others of this turn of the loop; while no scheduler is up, `_scheduler_up` will."""
        if self._scheduler is None:
            return
        self._outbox.append(sequence)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._send_outbox)

    def _send_outbox(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        sequences, self._outbox = self._outbox, []
        if not sequences:
            return
        try:
            self.ctx.cast("scheduler", Submit(sequences), control=True)
        except Overloaded as error:
            for sequence in sequences:
                stream = self._live.pop(sequence.id, None)
                if stream is not None:
                    stream.request.fail(error)

    def _order(self, message: Message) -> None:
        """Cast to the scheduler after all that was submitted before; waits for room in the background."""
        self._send_outbox()
        try:
            self.ctx.cast("scheduler", message, control=True)
        except Overloaded as error:
            self.log.warning("scheduler takes no mail", order=type(message).__name__, error=error.message)
            self.ctx.task(self._order_later(message, self._scheduler), name="order")

    async def _order_later(self, message: Message, scheduler: Address | None) -> None:
        """Until it is sent, or that scheduler and all its requests are gone."""
        while scheduler is not None and scheduler == self._scheduler:
            await asyncio.sleep(RETRY)
            try:
                self.ctx.cast(scheduler, message, control=True)
            except Overloaded:
                continue
            return

    def _asker_gone(self, stream: _Stream) -> None:
        """The asker cancelled, died or ran out of time."""
        if self._live.get(stream.id) is not stream:
            return
        del self._live[stream.id]
        self._count["cancelled"] += 1
        waiting = [sequence for sequence in self._outbox if sequence.id != stream.id]
        if len(waiting) < len(self._outbox):
            self._outbox = waiting
        elif self._scheduler is not None:
            self._ending[stream.id] += 1
            self._order(Abort([stream.id]))

    def _cancel(self, message: Cancel) -> None:
        """Pass an operator's cancellation on, of what is with the scheduler; its `Update` ends the streams."""
        for request_id in list(self._preparing) if message.all else message.ids:
            if request_id in self._preparing:
                self._preparing.pop(request_id).cancel(f"request {request_id} was cancelled")
        live = [*self._live] if message.all else [one for one in message.ids if one in self._live]
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
        self.ctx.task(self._learn_model(address), name="learn model")

    def _scheduler_down(self) -> None:
        self._scheduler = None
        self._ending.clear()
        self._outbox.clear()

    def _resubmit(self, stream: _Stream) -> None:
        """Have the scheduler go on with a request it has lost, or that we have lost track of."""
        self._count["resubmitted"] += 1
        timeout = max(0.001, stream.request.remaining or 0.0) if stream.request.remaining is not None else 0.0
        self._submit(msgspec.structs.replace(stream.generation.resubmission(), timeout=timeout))

    async def _learn_model(self, scheduler: Address) -> None:
        """Ask what is served until there is an answer, or another scheduler."""
        while self._scheduler == scheduler:
            try:
                self._model = await self.ctx.call("scheduler", DescribeModel(), ModelInfo, timeout=10.0)
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

    def _give_up(self, stream: _Stream, update: Update, error: SglActorsError) -> None:
        """One request cannot go on."""
        del self._live[stream.id]
        stream.request.fail(error)
        self._ending[stream.id] += update.finish is None
        self._order(Abort([stream.id]))

    def _emit(self, stream: _Stream) -> None:
        """Send what is new, as far as the asker takes it; what it does not take merges into the next chunk."""
        generation, request = stream.generation, stream.request
        if generation.finish is not None:
            self._live.pop(stream.id, None)
            request.end(generation.chunk())
        elif generation.has_news and request.credit > 0:
            request.item(generation.chunk())
            self._count["chunks"] += 1
        elif generation.has_news:
            self._count["chunks_held"] += 1

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


class _Preparation:
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


class _Stream:
    """A request in flight and the asker of the moment.

    Attributes:
        out_of_step: it was submitted again because an update was missing; updates that do not fit are ignored until one does.
    """

    def __init__(self, generation: Generation, request: Request) -> None:
        self.generation = generation
        self.request = request
        self.out_of_step = False

    @property
    def id(self) -> str:
        """The request's id."""
        return self.generation.sequence.id
