"""What a select asks of an API model: scores of the choices where the API tells them, else steps among them, else one of an enumeration."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import partial
from itertools import accumulate
from typing import Any, Final

import msgspec

from sgl_actors.actors.cache.messages import DEFAULT
from sgl_actors.actors.programs import whole_turn
from sgl_actors.actors.programs.interpreter import ask, usage_of
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Stream
from sgl_actors.actors.tokenizer.messages import Chunk, SamplingOptions, Tokenize
from sgl_actors.errors import BrokenAnswer
from sgl_actors.lang.arguments import check_choices, check_method
from sgl_actors.lang.backends.asked import LOGIT_BIAS, LOGPROBS, SCHEMA, check_media, check_select
from sgl_actors.lang.backends.capabilities import TEXT
from sgl_actors.lang.choices import (
    Scored,
    decide,
    greedy_token_selection,
    scored_from,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sgl_actors.lang.constraints.constraint import CHOICE, Constraint
from sgl_actors.lang.errors import InvalidPrimitive, Unsupported
from sgl_actors.lang.ir import ConstantText, Select
from sgl_actors.lang.protocols import ApiModel, Call
from sgl_actors.lang.results import Usage
from sgl_actors.lang.together import together

NEVER: Final = -100.0
"""Score of a choice that was not taken, where nothing more is known; that of the one taken is 0."""
BY_ANY: Final = (token_length_normalized, greedy_token_selection)
"""Methods that stand for the likeliest choice, which a constraint finds, too."""
BIAS: Final = 100.0
TEMPLATE: Final = "template"
"""By what the model writes into the template of its turn."""


async def select(stream: Stream, node: Select, setup: Setup, timeout: float) -> str:
    """Append the best choice and return it; see `selection.select`. How it was found is `by` in its meta.

    Raises:
        Unsupported: there is no way on this model, or `choices_method` needs scores, which it does not tell.
    """
    check_choices(node.name, node.choices)
    check_method(node.name, node.method)
    model = setup.client.api
    assert model is not None
    by = _way(node, model)
    media = [one for _, _, one in stream.prompt.media]
    check_media(f"select({node.name!r})", media, model.capabilities, model.title)
    if by in (SCHEMA, TEMPLATE) and model.capabilities.continuation != TEXT:
        choice, used = await whole_turn.choose(stream, node, setup, timeout)
        meta = _chosen(node, choice, used)
    else:
        setup.books.begin(0)
        prompt = await setup.frames.text(stream.prompt)
        before = stream.usage
        try:
            try:
                choice, meta = await WAYS[by](stream, node, setup, timeout, prompt)
            except _Unclear as unclear:
                if CHOICE not in model.capabilities.constraints or node.method not in BY_ANY:
                    raise BrokenAnswer(str(unclear)) from None
                by = SCHEMA
                choice, meta = await WAYS[by](stream, node, setup, timeout, prompt)
        finally:
            used = stream.usage - before
            setup.books.end(0, used.completion_tokens, used.cost)
    stream.write(ConstantText(choice))
    stream.define(node.name, choice, meta | {"method": node.method, "by": by})
    return choice


class _Unclear(Exception):
    """It cannot be told which text a log probability is of: some servers show parts of characters as U+FFFD."""


def _way(node: Select, model: ApiModel) -> str:
    """How the choice is found. A model of whole turns can write one into its turn's template, if it can nothing else."""
    try:
        return check_select(f"select({node.name!r})", node, model.capabilities, model.title)
    except Unsupported:
        if model.capabilities.continuation == TEXT or node.method == unconditional_likelihood_normalized:
            raise
        return TEMPLATE


def _chosen(node: Select, choice: str, used: Usage) -> dict[str, Any]:
    """What is known of a choice that has no scores."""
    return {
        "scores": {one: 0.0 if one == choice else NEVER for one in node.choices},
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "completion_tokens": used.completion_tokens,
        "finish_reason": {"type": "stop", "matched": None},
    }


async def _scored(
    stream: Stream, node: Select, setup: Setup, timeout: float, prompt: str
) -> tuple[str, dict[str, Any]]:
    """By log probabilities of the choices after the prompt; which texts belong together is told by their tokens' texts."""
    wholes = [prompt + choice for choice in node.choices]
    rows = await _scores(stream, node, setup, timeout, wholes, 0)
    ids = [_ids(row) for row in rows]
    ends = [list(accumulate(map(len, row.tokens))) for row in rows]
    if not prompt or all(own.count(len(prompt)) == 1 for own in ends):
        border = ids[0][: bisect_right(ends[0], len(prompt))]
    else:  # a choice has changed the prompt's last tokens, or begins with a part of a character: the prompt says itself which are its own
        rows += await _scores(stream, node, setup, timeout, [prompt], len(wholes))
        border = _ids(rows[-1])
    start = scored_from(border, ids)
    bare: list[Chunk] = []
    if node.method == unconditional_likelihood_normalized:
        starts = ["".join(row.tokens[start:]) for row in rows[: len(wholes)]]
        bare = await _scores(stream, node, setup, timeout, starts, len(wholes) + 1)
    values = [_values(row)[start:] for row in rows[: len(wholes)]]
    unconditional = [_values(row) for row in bare] or [()] * len(wholes)
    if any(len(one) != len(two) for one, two in zip(values, unconditional, strict=True) if bare):
        raise Unsupported(
            f"select({node.name!r}): the model divides a choice into other tokens without its prompt, so that {node.method} cannot compare them"
        )
    scored = [
        Scored(tuple(own[start:]), value, plain)
        for own, value, plain in zip(ids, values, unconditional, strict=False)
    ]
    try:
        decision = decide(node.method, scored)
    except ValueError as error:
        raise InvalidPrimitive(f"select({node.name!r}): {error}", param="choices") from None
    meta = {
        "scores": dict(zip(node.choices, decision.scores, strict=True)),
        "lengths": dict(zip(node.choices, decision.lengths, strict=True)),
        "normalized_prompt_logprobs": list(decision.means),
        "prompt_tokens": sum(row.prompt_tokens for row in rows + bare),
        "cached_tokens": sum(row.cached_tokens for row in rows + bare),
        "completion_tokens": 0,
        "finish_reason": {"type": "stop", "matched": None},
    }
    return node.choices[decision.index], meta


def _ids(row: Chunk) -> list[int]:
    """Numbers that are equal for equal tokens."""
    return [
        hash(text) if entry.token_id < 0 else entry.token_id
        for text, entry in zip(row.tokens, row.prompt_logprobs, strict=True)
    ]


async def _scores(
    stream: Stream, node: Select, setup: Setup, timeout: float, texts: list[str], first: int
) -> list[Chunk]:
    """Log probabilities of all tokens of texts; `first` numbers the requests."""
    call = _call(stream, node)
    sampling = SamplingOptions(max_tokens=0, temperature=0.0, seed=0)

    async def one(part: int, text: str) -> Chunk:
        own = call._replace(part=part)
        request = ask(setup, own, sampling, text=text, prompt_logprobs_start=0)
        chunk = await setup.client.complete(request, timeout=timeout, trace=setup.program, call=own)
        ends = list(accumulate(map(len, chunk.tokens), initial=0))
        finite = all(row.logprob is None or math.isfinite(row.logprob) for row in chunk.prompt_logprobs)
        if ends[-1] != len(text) or len(chunk.tokens) != len(chunk.prompt_logprobs) or not finite:
            raise _Unclear(
                f"the log probabilities of {len(text)} characters were told for {ends[-1]}: the server shows other texts for some tokens"
            )
        return chunk

    rows = await together([one(first + part, text) for part, text in enumerate(texts)])
    for row in rows:
        stream.count(usage_of(row, row.cached_tokens))
    return rows


def _values(row: Chunk) -> tuple[float | None, ...]:
    return tuple(entry.logprob for entry in row.prompt_logprobs)


async def _stepped(
    stream: Stream, node: Select, setup: Setup, timeout: float, prompt: str
) -> tuple[str, dict[str, Any]]:
    """Token by token: a bias leaves the model nothing but the choices' next tokens."""
    for one in node.choices:
        if any(other != one and other.startswith(one) for other in node.choices):
            raise Unsupported(
                f"select({node.name!r}): choice {one!r} begins another one, and the model cannot be asked where to end; give choices that do not"
            )
    rows = await together([_token_ids(setup, one) for one in node.choices])
    ids = dict(zip(node.choices, rows, strict=True))
    alive, written, used = list(node.choices), "", Usage()
    for step in range(max(map(len, ids.values()))):
        if len(alive) == 1:
            break
        following = sorted({ids[one][step] for one in alive if step < len(ids[one])})
        sampling = SamplingOptions(
            max_tokens=1, temperature=0.0, seed=0, logit_bias=tuple((token, BIAS) for token in following)
        )
        own = _call(stream, node)._replace(part=step)
        request = ask(setup, own, sampling, text=prompt + written)
        chunk = await setup.client.complete(request, timeout=timeout, trace=setup.program, call=own)
        used += usage_of(chunk, chunk.cached_tokens)
        left = [one for one in alive if one.startswith(written + chunk.text)] if chunk.text else []
        if not left:
            stream.count(used)
            raise BrokenAnswer(f"the model wrote {chunk.text!r} though only the choices were left to it")
        alive, written = left, written + chunk.text
    stream.count(used)
    return alive[0], _chosen(node, alive[0], used)


async def _constrained(
    stream: Stream, node: Select, setup: Setup, timeout: float, prompt: str
) -> tuple[str, dict[str, Any]]:
    """By what the model writes where nothing but a choice is allowed."""
    call = _call(stream, node)
    sampling = SamplingOptions(
        max_tokens=None,
        temperature=0.0,
        seed=0,
        constraint=Constraint(CHOICE, msgspec.json.encode(node.choices).decode()),
    )
    request = ask(setup, call, sampling, text=prompt)
    chunk = await setup.client.complete(request, timeout=timeout, trace=setup.program, call=call)
    used = usage_of(chunk, chunk.cached_tokens)
    stream.count(used)
    if chunk.text not in node.choices:
        raise BrokenAnswer(f"the model wrote {chunk.text!r} though only the choices were left to it")
    return chunk.text, _chosen(node, chunk.text, used)


async def _token_ids(setup: Setup, choice: str) -> list[int]:
    return (await setup.client.tokenize(Tokenize(choice, tenant=DEFAULT))).token_ids


def _call(stream: Stream, node: Select) -> Call:
    media = tuple(item for _, _, item in stream.prompt.media)
    return partial(Call, media=media)("select", node.name or "", stream.path, stream.position, node.choices)


WAYS: Final = {LOGPROBS: _scored, LOGIT_BIAS: _stepped, SCHEMA: _constrained}
