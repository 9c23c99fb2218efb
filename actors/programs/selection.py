"""What a select asks of the model: scores of every choice. Which is the best, `lang.choices` says."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from sgl_actors.actors.cache.messages import DEFAULT
from sgl_actors.actors.programs.interpreter import ask, check_media
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Stream
from sgl_actors.actors.tokenizer.messages import Chunk, SamplingOptions, Tokenize
from sgl_actors.errors import Cancelled, ProtocolError, error_class
from sgl_actors.lang.arguments import check_choices, check_method
from sgl_actors.lang.choices import (
    Decision,
    Scored,
    decide,
    scored_from,
    unconditional_likelihood_normalized,
)
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import ConstantText, Select
from sgl_actors.lang.protocols import Call
from sgl_actors.lang.results import Usage
from sgl_actors.lang.together import together


async def select(stream: Stream, node: Select, setup: Setup, timeout: float) -> str:
    """Append the best choice and return it.

    All is asked for at once: the scheduler has one of the choices compute the prompt that they share, while the others wait for it.

    Raises:
        InvalidPrimitive: choices or a method that `select(…)` would refuse, or nothing to choose by.
        SglActorsError: what the node said to one of the requests; the others are cancelled.
    """
    check_choices(node.name, node.choices)
    check_method(node.name, node.method)
    prompt = await setup.frames.text(stream.prompt)
    check_media(stream.prompt, setup)
    setup.books.begin(0)
    border, *wholes = await _tokens([prompt, *(prompt + choice for choice in node.choices)], setup)
    start = scored_from(border, wholes)
    asks = [(ids, start) for ids in wholes]
    if node.method == unconditional_likelihood_normalized:
        asks += [(ids[start:], 0) for ids in wholes]
    media = tuple(item for _, _, item in stream.prompt.media)
    call = partial(Call, "select", node.name or "", stream.path, stream.position, node.choices, media=media)
    chunks = await together([_score(*one, setup, timeout, call(part=part)) for part, one in enumerate(asks)])
    for chunk in chunks:
        stream.count(Usage(chunk.prompt_tokens, chunk.cached_tokens, 0, 1))
    after, bare = chunks[: len(wholes)], chunks[len(wholes) :]
    try:
        decision = decide(node.method, _scored(after, bare))
    except ValueError as error:
        raise InvalidPrimitive(f"select({node.name!r}): {error}", param="choices") from None
    choice = node.choices[decision.index]
    stream.computed = len(prompt) + len(choice)
    stream.write(ConstantText(choice))
    stream.define(node.name, choice, _meta(node, decision, after, bare))
    return choice


async def _tokens(texts: list[str], setup: Setup) -> list[list[int]]:
    """Token ids of each text."""
    asks = [Tokenize(text, tenant=DEFAULT, salt=setup.cache_salt) for text in texts]
    return [answer.token_ids for answer in await together([setup.client.tokenize(one) for one in asks])]


async def _score(tokens: list[int], start: int, setup: Setup, timeout: float, call: Call) -> Chunk:
    """Log probabilities of tokens[start:], checked to be those."""
    sampling = SamplingOptions(max_tokens=0, temperature=0.0, seed=0)
    request = ask(setup, call, sampling, input_ids=tokens, prompt_logprobs_start=start)
    chunk = await setup.client.complete(request, timeout=timeout, trace=setup.program, call=call)
    if chunk.finish is not None and chunk.finish.reason == "abort":
        raise error_class(chunk.finish.code or Cancelled.code)(
            chunk.finish.message or "the request was aborted"
        )
    entries = chunk.prompt_logprobs
    if [entry.token_id for entry in entries] != tokens[start:] or not all(
        entry.logprob is None or math.isfinite(entry.logprob) for entry in entries
    ):
        raise ProtocolError(
            f"{request.id}: expected finite log probabilities of {len(tokens) - start} given tokens, got {len(entries)} entries"
            " that are not those"
        )
    return chunk


def _scored(after: list[Chunk], bare: list[Chunk]) -> list[Scored]:
    """What `decide` takes of the answers; `bare` is empty for a method that needs it not."""
    unconditional = [_values(chunk) for chunk in bare] or [()] * len(after)
    return [
        Scored(tuple(entry.token_id for entry in chunk.prompt_logprobs), _values(chunk), plain)
        for chunk, plain in zip(after, unconditional, strict=True)
    ]


def _values(chunk: Chunk) -> tuple[float | None, ...]:
    return tuple(entry.logprob for entry in chunk.prompt_logprobs)


def _meta(node: Select, decision: Decision, after: list[Chunk], bare: list[Chunk]) -> dict[str, Any]:
    """What `meta` tells of it. Names are SGLang's where it has them; lists are in the order of the choices."""
    meta: dict[str, Any] = {
        "method": node.method,
        "scores": dict(zip(node.choices, decision.scores, strict=True)),
        "lengths": dict(zip(node.choices, decision.lengths, strict=True)),
        "normalized_prompt_logprobs": list(decision.means),
        "input_token_logprobs": _entries(after),
        "prompt_tokens": sum(chunk.prompt_tokens for chunk in after + bare),
        "cached_tokens": sum(chunk.cached_tokens for chunk in after + bare),
        "completion_tokens": 0,
        "finish_reason": {"type": "stop", "matched": None},
    }
    if decision.matrix:
        meta["greedy_logprob_matrix"] = [list(row) for row in decision.matrix]
    if bare:
        meta["unconditional_token_logprobs"] = _entries(bare)
        meta["normalized_unconditional_prompt_logprobs"] = list(decision.scores)
    return meta


def _entries(chunks: list[Chunk]) -> list[list[list[float | int | None]]]:
    """[log probability, token id] of each scored token, by choice."""
    return [[[entry.logprob, entry.token_id] for entry in chunk.prompt_logprobs] for chunk in chunks]
