"""What a gen asks of the model, and what a fork asks of it beforehand. Select has a file of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

import msgspec

from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Stream
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions
from sgl_actors.errors import Cancelled, error_class
from sgl_actors.lang.errors import BudgetExceeded, UnsupportedMedia
from sgl_actors.lang.ir import Gen
from sgl_actors.lang.prompt import Prompt
from sgl_actors.lang.protocols import Call
from sgl_actors.lang.results import Usage
from sgl_actors.lang.sampling import derive_seed, resolve
from sgl_actors.lang.shape import decoder_of, parts_of
from sgl_actors.lang.stops import Cutter
from sgl_actors.lang.together import together

TAIL = 64
"""Characters of a prompt, about 16 tokens, that are not worth a call of their own before a fork."""


async def generate(
    stream: Stream, node: Gen, setup: Setup, timeout: float, emit: Callable[[str], None]
) -> None:
    """Have the model write on; `emit` gets the text piece by piece (of several completions, the first one's)."""
    prompt = await setup.frames.text(stream.prompt)
    check_media(stream.prompt, setup)
    seed = derive_seed(setup.seed, stream.path, stream.gens)
    sampling = resolve(node.sampling, setup.sampling, seed, node.constraint)
    asks = [
        Completion(setup, node, nth(sampling, part), timeout, call_of(stream, node, part), text=prompt)
        for part in range(node.count)
    ]
    stream.gens += 1
    await complete(stream, asks, emit)
    stream.computed = len(prompt) + len(asks[0].text)
    define(stream, node, asks)


def check_room(setup: Setup, sampling: SamplingOptions, count: int, together: int) -> None:
    """Raise `BudgetExceeded` if completions that an API gives `together` of to a request may be more than the budget has left: none could be cut short alone."""
    left, most = setup.books.left, sampling.max_tokens
    if left is not None and most is not None and count > 1 < together and count * most > left:
        raise BudgetExceeded(
            f"{count} completions of up to {most} tokens are more than the {max(left, 0)} generated tokens that are left of the program's budget"
        )


async def complete(stream: Stream, asks: Sequence[Completion], emit: Callable[[str], None]) -> None:
    """Ask for completions at the same time, and count what they use; `emit` gets the first one's text."""
    first = asks[0]
    try:
        if len(asks) == 1:
            await first.run(emit)
        else:
            await together([one.run(emit if one is first else _ignore) for one in asks])
    finally:
        for one in asks:
            if one.answered:
                stream.count(one.used)


class Completion:
    """One completion of a gen.

    Args:
        setup, node, timeout, call: of the gen, and what it is for.
        sampling: of this one.
        cut: what cuts the text at its stops, of a model that may not do so itself.
        calls: 0 if it is had with another one's request.
        prompt: as in `Generate`.

    Attributes:
        text: once it is there.
        finish: why it ended.
        used: so far.
        answered: something came.
        meta: what the program may know of it.
    """

    def __init__(
        self,
        setup: Setup,
        node: Gen,
        sampling: SamplingOptions,
        timeout: float,
        call: Call,
        cut: Cutter | None = None,
        *,
        calls: int = 1,
        **prompt: Any,
    ) -> None:
        self._calls = calls
        self._setup, self._node, self._timeout, self._call = setup, node, timeout, call
        self._prompt, self._sampling, self.cut = prompt, sampling, cut
        self.text = ""
        self.finish = Finish("stop")
        self.answered = False
        self.used = Usage()
        self.meta: dict[str, Any] = {}

    @property
    def unused(self) -> int:
        """About how many of its tokens stand behind the stop that it was cut at."""
        cut = self.cut
        if cut is None or cut.stop is None:
            return 0
        return round(self.used.completion_tokens * (len(cut.text) - cut.stop.end) / len(cut.text))

    async def run(self, emit: Callable[[str], None]) -> None:
        """Make the call, within the program's budget."""
        asked, books = self._sampling.max_tokens, self._setup.books
        reserved = books.begin(asked, self._calls)
        try:
            last, text = await self._stream(reserved, emit)
        finally:
            used = self.used.completion_tokens  # also of one that was cancelled or failed on its way
            books.end(reserved, used, self.used.cost)
        finish = last.finish
        assert finish is not None
        self.finish = finish
        if finish.reason == "abort":
            raise error_class(finish.code or Cancelled.code)(finish.message or "the request was aborted")
        cut_short = self.cut is None or self.cut.stop is None
        if finish.reason == "length" and reserved != asked and cut_short:
            raise BudgetExceeded(
                f"the program's budget of {books.budget.tokens} generated tokens ended this text after {used}"
            )
        self.text = text

    async def _stream(self, max_tokens: int | None, emit: Callable[[str], None]) -> tuple[Chunk, str]:
        node, setup = self._node, self._setup
        request = ask(
            setup,
            self._call,
            msgspec.structs.replace(self._sampling, max_tokens=max_tokens),
            logprobs=node.logprobs,
            top_logprobs=node.top_logprobs,
            prompt_logprobs_start=node.prompt_logprobs_start,
            **self._prompt,
        )
        pieces: list[str] = []
        cut = self.cut
        logprobs: list[Any] = []
        tokens: list[str] = []
        of_prompt: list[Any] = []
        cached = 0
        chunks = setup.client.generate(request, timeout=self._timeout, trace=setup.program, call=self._call)
        async with aclosing(cast("_Chunks", chunks)):
            async for chunk in chunks:
                if chunk.text:
                    pieces.append(chunk.text)
                    emit(chunk.text if cut is None else cut.feed(chunk.text))
                logprobs += chunk.logprobs
                tokens += chunk.tokens
                of_prompt += chunk.prompt_logprobs
                cached = max(cached, chunk.cached_tokens)
                last = chunk
                self.answered = True
                self.used = usage_of(last, cached)
        if cut is not None:
            emit(cut.end())
        self.meta = _meta(request, last if cut is None else cut.finished(last), cached)
        if node.logprobs:
            self.meta["output_token_logprobs"] = [[entry.logprob, entry.token_id] for entry in logprobs]
            if tokens:
                self.meta["output_tokens"] = tokens
        if node.top_logprobs:
            self.meta["output_top_logprobs"] = [
                [[value, id_] for id_, value in entry.top] for entry in logprobs
            ]
        if node.prompt_logprobs_start >= 0:
            self.meta["input_token_logprobs"] = [[entry.logprob, entry.token_id] for entry in of_prompt]
        return last, "".join(pieces) if cut is None else cut.kept


def _meta(request: Generate, last: Chunk, cached: int) -> dict[str, Any]:
    """What a program may know of a request by its last chunk."""
    finish, decoding = last.finish, last.decoding
    assert finish is not None
    return {
        "id": request.id,
        "prompt_tokens": last.prompt_tokens,
        "cached_tokens": cached,
        "completion_tokens": last.completion_tokens,
        "decode_steps": decoding.steps,
        "sampled_tokens": decoding.sampled,
        "forced_tokens": decoding.forced,
        "held_back_tokens": decoding.held_back,
        "drafted_tokens": decoding.drafted,
        "accepted_tokens": decoding.accepted,
        "finish_reason": {"type": finish.reason, "matched": finish.matched},
        "seed": request.sampling.seed,
    }


def _ignore(_text: str) -> None: ...


def nth(sampling: SamplingOptions, part: int) -> SamplingOptions:
    """Sampling of completion number `part`: each has a seed of its own, the first the gen's."""
    if not part:
        return sampling
    assert sampling.seed is not None
    return msgspec.structs.replace(sampling, seed=derive_seed(sampling.seed, "completion", part))


def call_of(stream: Stream, node: Gen, part: int) -> Call:
    """What request number `part` of a gen is for."""
    media = tuple(item for _, _, item in stream.prompt.media)
    return Call("gen", node.name or "", stream.path, stream.position, part=part, media=media)


def define(stream: Stream, node: Gen, asks: Sequence[Completion]) -> None:
    """Give the variables their values, see `define_as`."""
    meta = dict(asks[0].meta)
    if node.count > 1:
        meta["completions"] = [one.meta for one in asks]
    define_as(stream, node, [one.text for one in asks], meta)


def define_as(stream: Stream, node: Gen, texts: Sequence[str], meta: dict[str, Any]) -> None:
    """Give the variables their values; texts that are no values fail the gen, and say why."""
    text = texts[0]
    stream.generated(node.name, text)
    value = text if node.count == 1 else list(texts)
    decode = decoder_of(node.adapter) if node.adapter else None
    if decode is not None:
        for one in texts:
            decode(one)
        stream.define(node.name, value, meta, node.adapter)
        return
    for name, (part, adapter) in (parts_of(node.adapter, text) or {}).items():
        stream.define(name, part, None, adapter)
    stream.define(node.name, value, meta)


def check_media(prompt: Prompt, setup: Setup) -> None:
    """Raise `UnsupportedMedia` for what the model cannot take."""
    for _, _, media in prompt.media:
        if media.kind not in setup.client.takes:
            raise UnsupportedMedia(f"the model takes no {media.kind}s")


async def precompute(stream: Stream, prompt: str, setup: Setup, timeout: float) -> None:
    """Have the node compute a prompt that several will go on from, unless all but a short tail has been computed already."""
    if len(prompt) - stream.computed > TAIL:
        call = Call("prefix", stream=stream.path, position=stream.position)
        request = ask(setup, call, SamplingOptions(max_tokens=0, seed=0), text=prompt)
        chunk = await setup.client.complete(request, timeout=timeout, trace=setup.program, call=call)
        stream.count(Usage(chunk.prompt_tokens, chunk.cached_tokens, 0, 1))
        stream.computed = len(prompt)


def ask(setup: Setup, call: Call, sampling: SamplingOptions, **fields: Any) -> Generate:
    """A request of this program; its id shows whose it is."""
    return Generate(
        setup.request_id(call),
        sampling=sampling,
        program=setup.program,
        salt=setup.cache_salt,
        priority=setup.priority,
        **fields,
    )


def usage_of(chunk: Chunk, cached: int) -> Usage:
    """What a call has used up to its chunk `chunk`, of its prompt tokens `cached` from the cache."""
    how = chunk.decoding
    return Usage(
        chunk.prompt_tokens,
        cached,
        chunk.completion_tokens,
        0 if chunk.shared else 1,
        how.steps,
        how.sampled,
        how.forced,
        how.held_back,
        how.drafted,
        how.accepted,
        retries=chunk.retries,
        cost=chunk.cost,
    )


class _Chunks(AsyncIterator[Chunk]):
    """What `Client.generate` returns: an async generator."""

    async def aclose(self) -> None: ...
