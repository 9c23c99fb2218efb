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

This is the shell that dispatches. A request's way is through `preparations` (if it takes time to make ids of it), `delivery` (the asker's side of requests in
flight and kept) and `submissions` (the scheduler's side of them, by way of its `outbox`); `served` knows the model.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterable
from typing import Any, ClassVar

from sgl_actors.actors.microkernel import Actor, Address, Context, Down, MailboxSpec, Message, Request, Up
from sgl_actors.actors.microkernel.swap import Snapshot
from sgl_actors.actors.scheduler.messages import Abort, Finish, Progress, Stop, Update
from sgl_actors.actors.tokenizer import admission, prompts, vocabulary
from sgl_actors.actors.tokenizer.delivery import Delivery
from sgl_actors.actors.tokenizer.generation import Generation
from sgl_actors.actors.tokenizer.handover import LAYOUT, Order, TokenizerState
from sgl_actors.actors.tokenizer.kept import read_options
from sgl_actors.actors.tokenizer.messages import (
    Cancel,
    Deliver,
    Delivered,
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
from sgl_actors.actors.tokenizer.preparations import Preparations
from sgl_actors.actors.tokenizer.served import ServedModel
from sgl_actors.actors.tokenizer.streams import Stream
from sgl_actors.actors.tokenizer.submissions import Submissions
from sgl_actors.errors import Cancelled, InvalidRequest, ProtocolError, SglActorsError

LOOK = 0.02
"""Seconds between two looks whether every asker has had its end."""
INLINE = 16_384
"""Characters that are tokenised on the loop (about 5 ms); longer texts go to a thread."""


class TokenizerActor(Actor):
    """See the module's docstring."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=8192)
    """More than a scheduler's `queue` lets wait, so that it is the scheduler that refuses."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._vocabulary: vocabulary.Vocabulary
        self._prompts: prompts.Prompts
        self._count: Counter[str] = Counter()
        self._served = ServedModel()
        self._delivery = Delivery(context, read_options(context.config), self._count, self._abandon)
        self._submissions = Submissions(context, self._delivery, self._count, self._task)
        self._preparations = Preparations(context, self._served, self._task, self._admit)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the vocabulary; `CheckpointError` if that cannot be."""
        began = self.ctx.now()
        await self._load()
        self.log.info(
            "vocabulary loaded", tokens=len(self._vocabulary), seconds=round(self.ctx.now() - began, 3)
        )
        self.ctx.watch(self.ctx.peer("scheduler"))

    async def stop(self) -> None:
        """Drop what has not been sent."""
        self._submissions.outbox.close()

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Dispatch; see `messages`."""
        match message:
            case Progress():
                for update in message.updates:
                    self._submissions.progress(update)
            case Generate():
                self._generate(message, request)
            case Tokenize():
                if prompts.size(message) <= INLINE:
                    return self._prompts.tokenise(message)
                self._preparations.tokenise(message, request, self._prompts)
            case Detokenize():
                return self._detokenise(message)
            case DescribeTokenizer():
                return self._describe()
            case DescribeVocabulary():
                self._preparations.describe_vocabulary(message, request, self._vocabulary)
            case Cancel():
                self._cancel(message)
            case Deliver():
                self._task(self._deliver(request), name="deliver")
            case Expire():
                self._delivery.expire()
            case Up():
                self._scheduler_up(message.address)
            case Down():
                if message.address == self._submissions.scheduler:
                    self._submissions.down()
            case _:
                return await super().receive(message, request)
        return None

    def statistics(self) -> dict[str, float]:
        """Requests, tokens and what the streams went through."""
        return {
            "num_live_requests": len(self._delivery.live),
            "num_preparing_requests": len(self._preparations.waiting),
            "num_kept_requests": len(self._delivery.kept),
            **{f"{name}_total": float(count) for name, count in self._count.items()},
        }

    async def _deliver(self, request: Request) -> None:
        while self._delivery.live or self._preparations.waiting:  # noqa: ASYNC110 - asked once in a model's life
            await asyncio.sleep(LOOK)
        request.reply(Delivered())

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run beside the messages, until a successor takes over."""
        task = self.ctx.task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self) -> None:
        self._use(await asyncio.to_thread(vocabulary.load, self.ctx.config["model"]["path"]))

    def _use(self, loaded: vocabulary.Vocabulary) -> None:
        self._vocabulary = loaded
        self._prompts = prompts.Prompts(loaded)

    # -- requests -----------------------------------------------------------------------------------------

    def _generate(self, message: Generate, request: Request) -> None:
        if request.kind != "stream":
            raise ProtocolError(f"Generate is asked as a stream, not as a {request.kind}")
        admission.check(message)
        checked = message.sampling.constraint is None and not message.sampling.stop_regex
        if self._served.info is not None and checked and prompts.size(message) <= INLINE:
            self._admit(message, self._prompts.ids(message), request)
        else:
            self._preparations.begin(message, request, self._prompts)

    def _admit(self, message: Generate, prompt: list[int], request: Request) -> None:
        """Its prompt is known: let it in, or on, if it is known already."""
        model = self._served.info
        assert model is not None
        sequence = admission.admit(
            message,
            prompt,
            model=model,
            eos_ids=self._vocabulary.eos_ids or model.eos_ids,
            seed=secrets.randbits(63),
            timeout=request.remaining or 0.0,
            trace=request.trace,
        )
        if self._delivery.rejoin(message, sequence, request):
            return
        generation = Generation(self._vocabulary, sequence, message.sampling, message.known)
        self._count["requests"] += 1
        self._count["prompt_tokens"] += len(prompt)
        stream = self._delivery.begin(generation, request)
        if generation.finish is not None:
            self._delivery.emit(stream)
        else:
            self._submissions.submit(sequence)

    def _abandon(self, request: str) -> None:
        self._submissions.abandon(request)

    def _scheduler_up(self, address: Address) -> None:
        if address == self._submissions.scheduler:
            return
        self._submissions.up(address)
        self._learn_model(address)

    def _learn_model(self, scheduler: Address) -> None:
        work = self._served.learn(self.ctx, lambda: self._submissions.scheduler == scheduler)
        self._task(work, "learn model")

    def _cancel(self, message: Cancel) -> None:
        """Pass an operator's cancellation on, of what is with the scheduler; its `Update` ends the streams."""
        ids = self._meant(message)
        for request_id in ids:
            if request_id in self._preparations.waiting:
                self._preparations.cancel(request_id)
            if request_id not in self._delivery.live:
                self._delivery.kept.take(request_id)
        live = [self._delivery.live[one] for one in ids if one in self._delivery.live]
        if self._submissions.scheduler is None:
            self._end_cancelled(live)
        elif message.all or live:
            ordered = [] if message.all else [stream.id for stream in live]
            self._submissions.outbox.order(Abort(ordered, message.all))

    def _meant(self, message: Cancel) -> list[str]:
        """The requests that it names, each once, as far as they are known."""
        delivery = self._delivery
        known = dict.fromkeys([*self._preparations.waiting, *delivery.live, *delivery.kept.keys()])
        heads = tuple(f"{stem}-" for stem in message.stems)
        ids = [one for one in message.ids if one in known]
        if message.all or heads:
            ids += [one for one in known if message.all or one.startswith(heads)]
        return list(dict.fromkeys(ids))

    def _end_cancelled(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            end = Finish("abort", code=Cancelled.code, message="cancelled while the scheduler was down")
            stream.generation.update(Update(stream.id, len(stream.generation.ids), [], finish=end))
            self._delivery.emit(stream)

    def _detokenise(self, message: Detokenize) -> Message:
        ids, skip = message.token_ids, message.skip_special_tokens
        model = self._served.info
        known = max(len(self._vocabulary), model.vocabulary if model is not None else 0)
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
            unk_token=tokens.get("unk_token"),
        )

    # -- a successor takes over; see `handover` -----------------------------------------------------------

    async def settle(self) -> None:
        """Send no chunks from here on: what an asker has must not change under a snapshot."""
        self._delivery.resting = self._submissions.outbox.at_once = True
        self._submissions.outbox.send()

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        requests: list[Request] = []

        def place(request: Request) -> int:
            requests.append(request)
            return len(requests) - 1

        orders = self._submissions.outbox.orders
        state = TokenizerState(
            self._delivery.state(self.ctx.now(), place),
            self._preparations.state(place),
            [Order(stop=one) if isinstance(one, Stop) else Order(abort=one) for one in orders],
            dict(self._submissions.ending),
            self._submissions.scheduler,
            self._served.info,
            dict(self._count),
        )
        return Snapshot.of(LAYOUT, state, requests=requests, vocabulary=self._vocabulary)

    async def restore(self, snapshot: Snapshot) -> None:
        """Take over, without a word to anybody: `_begin` follows once this object is in charge."""
        state = snapshot.read(LAYOUT, TokenizerState)
        requests: list[Request] = snapshot.handle("requests", list)
        found = snapshot.handles.get("vocabulary")
        if isinstance(found, vocabulary.Vocabulary):
            self._use(found)
        else:
            await self._load()
        self._submissions.outbox.scheduler = state.scheduler
        if state.model is not None:
            self._served.learned(state.model)
        self._submissions.ending.update(state.ending)
        self._count.update(state.counts)
        dropped: list[Stream] = []
        for one in state.streams:
            request = requests[one.request] if one.request >= 0 else None
            dropped += self._delivery.take(one, request, self._vocabulary)
        self._task(self._begin(state, requests, dropped), "begin")

    async def _begin(self, state: TokenizerState, requests: list[Request], dropped: list[Stream]) -> None:
        """The predecessor has gone."""
        self._delivery.take_over(dropped)
        for order in state.orders:
            self._submissions.outbox.order(order.stop or order.abort or Abort([]))
        scheduler = self._submissions.scheduler
        if self._served.info is None and scheduler is not None:
            self._learn_model(scheduler)
        for asked in state.questions:
            message = asked.generate or asked.tokenize or DescribeVocabulary()
            self._ask_again(message, requests[asked.request])
        self._delivery.emit_all()

    def _ask_again(self, message: Message, request: Request) -> None:
        """Begin what the predecessor had begun."""
        match message:
            case Generate():
                try:
                    self._generate(message, request)
                except SglActorsError as error:
                    request.fail(error)
            case Tokenize():
                self._preparations.tokenise(message, request, self._prompts)
            case _:
                self._preparations.describe_vocabulary(message, request, self._vocabulary)

    def resume(self) -> None:
        """Send what was held back."""
        self._submissions.outbox.at_once = False
        self._delivery.resume()

    async def leave(self) -> None:
        """Let go of the requests: what the kernel still tells this object of them means nothing."""
        self._delivery.live.clear()
        self._submissions.outbox.close()
        for task in [*self._tasks]:
            task.cancel()
