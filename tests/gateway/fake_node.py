"""A node without a model: byte tokens, a made-up but deterministic distribution, and switches for every kind of fault.

Words in a prompt steer it: ``<hold>`` waits after the first token until released, ``<fail>`` raises after two tokens,
``<busy>``, ``<down>`` and ``<slow>`` raise `Overloaded`, `NotReady` and `DeadlineExceeded` before the first.
"""

from __future__ import annotations

import asyncio
import codecs
import functools
import math
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from sgl_actors.actors.cache.messages import Edge, Event, Events, Exported, Pinned, Pool
from sgl_actors.actors.microkernel.messages import ActorRow, Actors
from sgl_actors.actors.microkernel.record import ProcessRecord, Recorded
from sgl_actors.actors.node.client import NodeProfile, check_changes, merge, namespace_of
from sgl_actors.actors.node.messages import LoadedModel, LoadModel, Models, UnloadModel
from sgl_actors.actors.node.profile import summarise
from sgl_actors.actors.node.profile_client import check_seconds
from sgl_actors.actors.scheduler.messages import Configuration, Configure, Decoding, Finish, Flushed
from sgl_actors.actors.tokenizer.messages import (
    ChatMessage,
    Chunk,
    Generate,
    SamplingOptions,
    Texts,
    TokenIds,
    Tokenize,
    TokenizerInfo,
)
from sgl_actors.actors.worker.messages import ModelInfo, PartTime, Profiled, Slice, StepTime, TokenLogprob
from sgl_actors.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    RemoteError,
)

CONTEXT = 2048
EOS = 256
VOCABULARY = 257
ALPHABET: list[int] = [*range(ord("a"), ord("z") + 1), ord(" "), ord("\n")]

INFO = ModelInfo(
    served_name="fake",
    path="/models/fake.gguf",
    architecture="FakeForCausalLM",
    context=CONTEXT,
    vocabulary=VOCABULARY,
    eos_ids=(EOS,),
    pages=4096,
    page_size=1,
    bytes_per_token=8,
    dtype="float32",
    device="cpu",
    threads=1,
)


def encode(text: str) -> list[int]:
    """One token per byte; ``<eos>`` is a special token."""
    ids: list[int] = []
    for number, part in enumerate(text.split("<eos>")):
        ids += ([EOS] if number else []) + list(part.encode())
    return ids


def raw(token: int) -> bytes:
    """Bytes of a token."""
    return b"<eos>" if token == EOS else bytes((token,))


def render(messages: list[ChatMessage], *, generation: bool, tools: str = "") -> str:
    """The fake chat template."""
    text = "".join(f"[{message.role}]{message.content}{message.tool_calls}" for message in messages)
    return tools + text + "[assistant]" if generation else tools + text


def logits(context: list[int]) -> list[float]:
    """Log probabilities of the next token: a hash of the last two tokens, letters far ahead of the rest."""
    return _logits(context[-1] if context else 7, context[-2] if len(context) > 1 else 3)


@functools.cache
def _logits(last: int, before: int) -> list[float]:
    raw_values = [
        ((last * 31 + before * 7 + token * 17) % 101) / 10 + (20 if token in ALPHABET else 0)
        for token in range(VOCABULARY)
    ]
    total = math.log(sum(math.exp(value) for value in raw_values))
    return [value - total for value in raw_values]


def logprob(context: list[int], token: int, top: int) -> TokenLogprob:
    """What the model says of `token` after `context`."""
    if not context:
        return TokenLogprob(token, None)
    values = logits(context)
    best = sorted(range(VOCABULARY), key=lambda one: -values[one])[:top]
    return TokenLogprob(token, values[token], tuple((one, values[one]) for one in best))


def sample(context: list[int], sampling: SamplingOptions, position: int) -> int:
    """The next token: the likeliest at temperature 0, else one drawn by (seed, position)."""
    if sampling.temperature == 0:
        values = logits(context)
        return values.index(max(values))
    seed = 0 if sampling.seed is None else sampling.seed
    return ALPHABET[hash((seed, position, len(context))) % len(ALPHABET)]


class FakeNode:
    """Implements `Upstream`.

    Attributes:
        asked: every generation, in order.
        aborted: ids of generations closed before their end.
        aborting: set whenever one was.
        release: what ``<hold>`` waits for.
        holding: set once a ``<hold>`` has given its first token.
        forced: output text of every generation instead of the made-up one.
        refusal: what is wrong with every constraint.
    """

    def __init__(self, name: str = INFO.served_name) -> None:
        self.name = name
        self.asked: list[Generate] = []
        self.traces: list[str] = []
        self.aborted: list[str] = []
        self.aborting = asyncio.Event()
        self.release = asyncio.Event()
        self.holding = asyncio.Event()
        self.cancelled: list[tuple[list[str], bool]] = []
        self.cancelled_stems: list[str] = []
        self.ready = True
        self.draining = False
        self.loaded = True
        self.forced: str | None = None
        self.refusal: InvalidRequest | None = None
        self.suffix = ""
        self.others: list[LoadedModel] = []
        self.changes: list[LoadModel | UnloadModel] = []
        self.beside: dict[str, FakeNode] = {}
        self.running = 0
        self.roots = 0
        self.held: list[Pinned] = []
        self.history: list[Event] = []
        self.incarnation = 7
        self.subscribed: list[tuple[int, int] | None] = []
        self.edges: list[Edge] = []
        self.cache_down = False
        self.broken_export = False
        self.configuration = Configuration("lpm", 1024, True, True, 3.2)
        self.profiled: list[tuple[float, bool]] = []
        self._seen: list[tuple[str, list[int]]] = []
        self._live: dict[str, asyncio.Event] = {}
        self._requests: dict[str, Generate] = {}

    def prompt_ids(self, request: Generate) -> list[int]:
        """The prompt in ids."""
        if request.input_ids is not None:
            return list(request.input_ids)
        if request.text is not None:
            return encode(request.text)
        return encode(
            render(request.messages or [], generation=not request.continue_final, tools=request.tools)
        )

    async def generate(
        self, request: Generate, *, timeout: float = 600.0, trace: str = ""
    ) -> AsyncIterator[Chunk]:
        """See `Upstream.generate`."""
        known = self._requests.get(request.id, request)
        if msgspec.structs.replace(known, known=0) != msgspec.structs.replace(request, known=0):
            raise InvalidRequest(f"id {request.id} is in use by another request", param="id")
        self.asked.append(request)
        self.traces.append(trace)
        self._requests[request.id] = request
        self.running += 1
        event = self._live[request.id] = asyncio.Event()
        done = False
        try:
            async for chunk in self._chunks(request, timeout):
                done = chunk.finish is not None
                yield chunk
        except (
            Overloaded,
            NotReady,
            DeadlineExceeded,
            RemoteError,
            ContextLengthExceeded,
            InvalidRequest,
        ):
            done = True
            raise
        finally:
            self.running -= 1
            if self._live.get(request.id) is event:
                del self._live[request.id], self._requests[request.id]
            if not done:
                self.aborted.append(request.id)
                self.aborting.set()

    async def _chunks(self, request: Generate, timeout: float) -> AsyncIterator[Chunk]:
        prompt = self.prompt_ids(request)
        text = bytes(token for token in prompt if token != EOS).decode(errors="replace")
        await asyncio.sleep(0)
        if "<busy>" in text:
            raise Overloaded("the queue is full")
        if "<down>" in text:
            raise NotReady("the worker is loading")
        if request.sampling.constraint is not None and self.refusal is not None:
            raise self.refusal
        if "<slow>" in text:
            raise DeadlineExceeded(f"request {request.id}: no answer within {timeout:g} s")
        sampling = request.sampling
        most = CONTEXT - len(prompt) if sampling.max_tokens is None else sampling.max_tokens
        if len(prompt) + most > CONTEXT or not prompt:
            raise ContextLengthExceeded(
                f"the prompt has {len(prompt)} tokens and max_tokens is {most}; together they are over the context of {CONTEXT}"
            )
        namespace = namespace_of(request.tenant, request.salt)
        cached = self._match(namespace, prompt, request.prompt_logprobs_start)
        first = Chunk(
            0,
            [],
            "",
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            prompt_ids=prompt,
            prompt_logprobs=[
                logprob(prompt[:index], prompt[index], request.top_logprobs)
                for index in range(max(0, request.prompt_logprobs_start), len(prompt))
                if request.prompt_logprobs_start >= 0
            ],
        )
        async for chunk in self._decode(request, prompt, most, first, text):
            yield chunk

    async def _decode(
        self, request: Generate, prompt: list[int], most: int, first: Chunk, text: str
    ) -> AsyncIterator[Chunk]:
        tokens, whole, finish = self._output(request, prompt, most)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoded, told = "", 0
        pending: Chunk | None = first
        for index, token in enumerate(tokens):
            await asyncio.sleep(0)
            if "<fail>" in text and index == 2:
                raise RemoteError("RuntimeError: secret detail of the worker")
            if self._live[request.id].is_set():
                yield self._chunk(
                    first, index, [], "", [], Finish("abort", code="cancelled", message="by an operator")
                )
                return
            decoded += decoder.decode(b"" if token == EOS else raw(token))
            stable = min(len(decoded) - _held(decoded, request.sampling.stop), len(whole))
            piece, told = whole[told:stable], max(told, stable)
            entries = (
                [logprob(prompt + tokens[:index], token, request.top_logprobs)] if request.logprobs else []
            )
            chunk = self._chunk(first, index, [token], piece, entries, None)
            chunk, pending = (chunk if pending is None else merge(pending, chunk)), None
            if index == len(tokens) - 1:
                break
            yield chunk
            if "<hold>" in text:
                self.holding.set()
                await self._wait(request.id)
        else:
            chunk = first
        yield merge(chunk, self._chunk(first, len(tokens), [], whole[told:], [], finish))

    async def _wait(self, request_id: str) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self.release, self._live[request_id])]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _output(self, request: Generate, prompt: list[int], most: int) -> tuple[list[int], str, Finish]:
        sampling = request.sampling
        forced = None if self.forced is None else [*encode(self.forced), EOS]
        tokens: list[int] = []
        while len(tokens) < most:
            context = prompt + tokens
            token = sample(context, sampling, len(tokens)) if forced is None else forced[len(tokens)]
            tokens.append(token)
            if (token == EOS and not sampling.ignore_eos) or token in sampling.stop_token_ids:
                return (
                    tokens,
                    _text([one for one in tokens[:-1] if one != EOS]),
                    Finish("stop", matched=token),
                )
            text = _text(tokens)
            for stop in sampling.stop:
                if stop in text:
                    end = text.index(stop) + (len(stop) if sampling.no_stop_trim else 0)
                    return tokens, text[:end], Finish("stop", matched=stop)
        return tokens, _text(tokens), Finish("length")

    @staticmethod
    def _chunk(
        first: Chunk,
        index: int,
        tokens: list[int],
        text: str,
        entries: list[TokenLogprob],
        finish: Finish | None,
    ) -> Chunk:
        return Chunk(
            index,
            tokens,
            text,
            entries,
            prompt_tokens=first.prompt_tokens,
            cached_tokens=first.cached_tokens,
            finish=finish,
            completion_tokens=index + len(tokens),
            decoding=Decoding(index + len(tokens), index + len(tokens) - 1, 1, 2, 5, 3),
        )

    def _match(self, namespace: str, prompt: list[int], start: int) -> int:
        best = 0
        for seen in (ids for space, ids in self._seen if space == namespace):
            same = 0
            for one, two in zip(seen, prompt, strict=False):
                if one != two:
                    break
                same += 1
            best = max(best, same)
        self._seen.append((namespace, prompt))
        return min(best, len(prompt) - 1, start if start >= 0 else len(prompt))

    async def complete(self, request: Generate, *, timeout: float = 600.0, trace: str = "") -> Chunk:
        """See `Upstream.complete`."""
        whole: Chunk | None = None
        async for chunk in self.generate(request, timeout=timeout, trace=trace):
            whole = chunk if whole is None else merge(whole, chunk)
        assert whole is not None
        return whole

    async def tokenize(self, request: Tokenize) -> TokenIds:
        """See `Upstream.tokenize`."""
        text = request.text
        if text is None:
            generation = request.add_generation_prompt and not request.continue_final
            text = render(request.messages or [], generation=generation, tools=request.tools)
        return TokenIds(encode(text), text)

    async def detokenize(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """See `Upstream.detokenize`."""
        return _text([token for token in token_ids if not (skip_special_tokens and token == EOS)])

    async def pieces(self, token_ids: list[int]) -> Texts:
        """See `Upstream.pieces`."""
        return Texts(
            [raw(token).decode(errors="replace") for token in token_ids], [raw(token) for token in token_ids]
        )

    async def model(self) -> ModelInfo:
        """See `Upstream.model`."""
        if not self.loaded:
            raise NotReady("no worker is up")
        return msgspec.structs.replace(INFO, served_name=self.name)

    async def tokenizer(self) -> TokenizerInfo:
        """See `Upstream.tokenizer`."""
        return TokenizerInfo(None, "<eos>", None, "{{ messages }}", VOCABULARY)

    def cancel(self, ids: Iterable[str], *, everything: bool = False, stems: Iterable[str] = ()) -> None:
        """See `Upstream.cancel`."""
        names = list(ids)
        self.cancelled_stems += stems
        if not names and not everything:
            return
        self.cancelled.append((names, everything))
        for name, event in self._live.items():
            if everything or name in names:
                event.set()

    async def models(self) -> Models:
        """The one model."""
        return Models([LoadedModel(self.name, "", INFO.path, "serving"), *self.others])

    async def change_models(self, change: LoadModel | UnloadModel) -> Models:
        """Note what was asked for."""
        self.changes.append(change)
        return await self.models()

    def use(self, suffix: str) -> None:
        """The default model's actors."""
        self.suffix = suffix

    def of(self, row: LoadedModel) -> FakeNode:
        """Another model of it: another fake."""
        return self.beside.setdefault(row.name, FakeNode(row.name))

    async def actors(self) -> Actors:
        """See `Upstream.actors`."""
        self.roots += 1
        state = "running" if self.ready else "starting"
        rows = [
            ActorRow("scheduler#1", "running", 1, 0, 0, 11, 1000, statistics={"num_requests_total": 3.0, "num_queue_reqs": 2.0, "node_ready": 1.0, "prompt_tokens_total": 200.0, "cached_tokens_total": 150.0}),
            ActorRow("worker/0#2", state, 2, 1, 4, 12, 2000, statistics={"num_queue_reqs": 1.0}),
        ]  # fmt: skip
        return Actors(rows, self.ready, self.draining, 12.5)

    async def flush(self) -> Flushed:
        """See `Upstream.flush`."""
        if self.running:
            return Flushed(done=False, busy=self.running)
        self._seen.clear()
        return Flushed(done=True)

    async def cache(self) -> Pool:
        """See `Upstream.cache`."""
        if self.cache_down:
            raise NotReady("the cache is down")
        return Pool(
            1, total=100, page_size=4, free=60, cached=30, leased=10, locked=5, tokens=120, leases=2,
            pinned=3, evicted=8,
        )  # fmt: skip

    async def pin(
        self,
        token_ids: Sequence[int],
        *,
        ttl: float,
        name: str = "",
        tenant: str = "default",
        salt: str = "",
        timeout: float = 600.0,
        trace: str = "",
    ) -> Pinned:
        """See `Upstream.pin`; two of three tokens are held, and half a second has passed."""
        ids = list(token_ids)
        request = Generate(
            "pin", input_ids=ids, sampling=SamplingOptions(max_tokens=0), tenant=tenant, salt=salt
        )
        await self.complete(request, timeout=timeout, trace=trace)
        namespace = namespace_of(tenant, salt)
        pinned = Pinned(name or "drawn", namespace, len(ids), len(ids) * 2 // 3, ttl - 0.5)
        self.held = [pin for pin in self.held if (pin.name, pin.namespace) != (pinned.name, namespace)]
        self.held.append(pinned)
        return pinned

    async def pins(self) -> list[Pinned]:
        """See `Upstream.pins`."""
        return self.held

    async def unpin(self, pins: Sequence[Pinned]) -> None:
        """See `Upstream.unpin`."""
        self.held = [pin for pin in self.held if pin not in pins]

    async def events(self, since: tuple[int, int] | None = None) -> AsyncIterator[Events]:
        """See `Upstream.events`: what happened after `since` in twos, then nothing until released."""
        self.subscribed.append(since)
        begin = 0 if since is None else since[1]
        for index in range(begin, len(self.history), 2):
            part = self.history[index : index + 2]
            yield Events(self.incarnation, index + len(part), part)
        self.holding.set()
        try:
            await self.release.wait()
        finally:
            self.aborting.set()

    async def export(self, namespace: str | None = None) -> AsyncIterator[Exported]:
        """See `Upstream.export`, an edge per message."""
        for edge in self.edges:
            if namespace in (None, edge.namespace):
                yield Exported([edge])
        if self.broken_export:
            raise RemoteError("the cache went down")

    async def profile(self, seconds: float, *, slices: bool = False) -> NodeProfile:
        """See `Upstream.profile`: two steps of ten milliseconds, at once."""
        check_seconds(seconds)
        self.profiled.append((seconds, slices))
        steps = [
            StepTime(number, at, at, at + 0.01, at + 0.01, 1, 1, 1) for number, at in ((0, 1.0), (1, 1.02))
        ]
        noted = [Slice("qkv", 1.0, 0.005)] if slices else []
        return summarise(
            Profiled(1.0, 1.03, 1, steps, [PartTime("qkv", 0.005, 1)], noted),
            Recorded([ProcessRecord("gateway", 0.01, 0.03, [])]),
        )

    async def configure(self, **changes: bool | float | str | None) -> Configuration:
        """See `Upstream.configure`."""
        asked = Configure(**changes)  # type: ignore[arg-type]
        check_changes(asked)
        given = {name: value for name, value in changes.items() if value is not None}
        self.configuration = msgspec.structs.replace(self.configuration, **given)
        return self.configuration


def _text(tokens: list[int]) -> str:
    return b"".join(raw(token) for token in tokens).decode(errors="replace")


def _held(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of `text` that may begin a stop string."""
    most = 0
    for stop in stops:
        for size in range(1, len(stop)):
            if text.endswith(stop[:size]):
                most = max(most, size)
    return most
