"""The primitives that ask the model, gen and select, and what a fork asks of it beforehand."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from sgl_actors.actors.cache.messages import DEFAULT
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Stream
from sgl_actors.actors.tokenizer.messages import Chunk, Generate, SamplingOptions, Tokenize
from sgl_actors.errors import Cancelled, error_class
from sgl_actors.lang.choices import decide, first_difference
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import ConstantText, Gen, Select
from sgl_actors.lang.sampling import derive_seed, resolve

TAIL = 64
"""Characters of a prompt, about 16 tokens, that are not worth a call of their own before a fork."""


async def generate(
    stream: Stream, node: Gen, setup: Setup, timeout: float, emit: Callable[[str], None]
) -> None:
    """Have the model write on; `emit` gets the text piece by piece."""
    prompt = await setup.frames.text(stream.prompt)
    sampling = resolve(node.sampling, setup.sampling, derive_seed(setup.seed, stream.path, stream.gens))
    request = ask(setup, sampling, text=prompt, logprobs=node.logprobs, top_logprobs=node.top_logprobs)
    stream.gens += 1
    pieces: list[str] = []
    logprobs: list[Any] = []
    cached = 0
    async with aclosing(
        cast("_Chunks", setup.client.generate(request, timeout=timeout, trace=setup.program))
    ) as chunks:
        async for chunk in chunks:
            if chunk.text:
                pieces.append(chunk.text)
                emit(chunk.text)
            logprobs += chunk.logprobs
            cached = max(cached, chunk.cached_tokens)
            last = chunk
    finish = last.finish
    assert finish is not None
    if finish.reason == "abort":
        raise error_class(finish.code or Cancelled.code)(finish.message or "the request was aborted")
    stream.count(last.prompt_tokens, cached, last.completion_tokens)
    text = "".join(pieces)
    stream.computed = len(prompt) + len(text)
    meta: dict[str, Any] = {
        "id": request.id,
        "prompt_tokens": last.prompt_tokens,
        "cached_tokens": cached,
        "completion_tokens": last.completion_tokens,
        "finish_reason": {"type": finish.reason, "matched": finish.matched},
        "seed": request.sampling.seed,
    }
    if node.logprobs:
        meta["output_token_logprobs"] = [[entry.logprob, entry.token_id] for entry in logprobs]
    if node.top_logprobs:
        meta["output_top_logprobs"] = [[[value, id_] for id_, value in entry.top] for entry in logprobs]
    stream.write(ConstantText(text))
    stream.define(node.name, text, meta)


async def select(stream: Stream, node: Select, setup: Setup, timeout: float) -> str:
    """Append the most likely choice and return it.

    All choices are asked for at once: the scheduler has one of them compute the prompt that they share, and the others wait for it.
    """
    if not node.choices:
        raise InvalidPrimitive(f"select({node.name!r}): choices is empty", param="choices")
    prompt = await setup.frames.text(stream.prompt)
    asks = [
        Tokenize(text, tenant=DEFAULT, salt=setup.cache_salt)
        for text in (prompt, *(prompt + choice for choice in node.choices))
    ]
    tokens = [ids.token_ids for ids in await _all([setup.client.tokenize(one) for one in asks])]
    starts = [first_difference(tokens[0], ids) for ids in tokens[1:]]
    scored = await _all(
        [score(ids, start, setup, timeout) for ids, start in zip(tokens[1:], starts, strict=True)]
    )
    for chunk in scored:
        stream.count(chunk.prompt_tokens, chunk.cached_tokens, 0)
    try:
        decision = decide([[entry.logprob for entry in chunk.prompt_logprobs] for chunk in scored])
    except ValueError as error:
        raise InvalidPrimitive(f"select({node.name!r}): {error}") from None
    choice = node.choices[decision.index]
    stream.computed = len(prompt) + len(choice)
    meta = {
        "scores": dict(zip(node.choices, decision.scores, strict=True)),
        "lengths": dict(zip(node.choices, decision.lengths, strict=True)),
        "input_token_logprobs": [
            [[e.logprob, e.token_id] for e in chunk.prompt_logprobs] for chunk in scored
        ],
        "prompt_tokens": sum(chunk.prompt_tokens for chunk in scored),
        "cached_tokens": sum(chunk.cached_tokens for chunk in scored),
        "completion_tokens": 0,
        "finish_reason": {"type": "stop", "matched": None},
    }
    stream.write(ConstantText(choice))
    stream.define(node.name, choice, meta)
    return choice


async def precompute(stream: Stream, prompt: str, setup: Setup, timeout: float) -> None:
    """Have the node compute a prompt that several will go on from, unless all but a short tail has been computed already."""
    if len(prompt) - stream.computed > TAIL:
        request = ask(setup, SamplingOptions(max_tokens=0, seed=0), text=prompt)
        chunk = await setup.client.complete(request, timeout=timeout, trace=setup.program)
        stream.count(chunk.prompt_tokens, chunk.cached_tokens, 0)
        stream.computed = len(prompt)


async def score(tokens: list[int], start: int, setup: Setup, timeout: float) -> Chunk:
    """Log probabilities of tokens[start:]."""
    sampling = SamplingOptions(max_tokens=0, temperature=0.0, seed=0)
    request = ask(setup, sampling, input_ids=tokens, prompt_logprobs_start=start)
    chunk = await setup.client.complete(request, timeout=timeout, trace=setup.program)
    assert all(entry.logprob is None or math.isfinite(entry.logprob) for entry in chunk.prompt_logprobs)
    return chunk


def ask(setup: Setup, sampling: SamplingOptions, **fields: Any) -> Generate:
    """A request of this program; its id shows whose it is."""
    return Generate(
        f"{setup.program}-{secrets.token_hex(8)}",
        sampling=sampling,
        program=setup.program,
        salt=setup.cache_salt,
        priority=setup.priority,
        **fields,
    )


async def _all(coroutines: list[Any]) -> list[Any]:
    """Results of all; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return [task.result() for task in tasks]


class _Chunks(AsyncIterator[Chunk]):
    """What `Client.generate` returns: an async generator."""

    async def aclose(self) -> None: ...
