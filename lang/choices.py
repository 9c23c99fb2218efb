"""Which of several choices is the best, without I/O: SGLang's three methods on what a model says of each.

**What is scored.** Each choice is tokenised together with the prompt, and all are scored from one token on: the first at which *any* of
them leaves the prompt's own tokens (`scored_from`). Mostly that is the first one after the prompt; then no token of the prompt counts, not
even the last. It lies before where a choice changes the prompt's last tokens, because the prompt ends inside a word or with a space: after "2 +
2 = " the space is a token of its own, in "2 + 2 = four" it belongs to " four", and in "2 + 2 = 4" it stays what it was. Scores can be
compared only if they speak of the same text after the same tokens. Scored each from its own first difference (as SGLang does, for one token),
"four" would have to account for the space and "4" would get it for nothing. So the space counts in both; that those tokens of the
prompt lengthen the choices that keep them is the price.

**What counts.** Every token that has a log probability, one of exactly 0 included (SGLang drops it). The first token of a sequence has none and
is left out; that concerns an empty prompt, and one whose very first token is changed.

**Choices that begin alike** have the same log probabilities there by definition, but a model that computes them in different batches reports
them with different last digits. Those of the first such choice are taken for all, so that it is the tokens in which they differ that decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final, TypeAlias

import msgspec

Logprobs: TypeAlias = tuple[float | None, ...]

token_length_normalized: Final = "token_length_normalized"  # noqa: S105 - a name
"""The best mean log probability of a choice's tokens. Favours long choices that are predictable from their first tokens on."""
greedy_token_selection: Final = "greedy_token_selection"  # noqa: S105 - a name
"""Token by token: those choices stay whose token is the most likely, until one is left. A choice that has ended stands on its mean."""
unconditional_likelihood_normalized: Final = "unconditional_likelihood_normalized"
"""The best mean of what the prompt adds to a token's log probability: common words are at no advantage. Twice the requests."""
METHODS: Final = (token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized)


class Scored(msgspec.Struct, frozen=True):
    """A choice's tokens from `scored_from` on, and what the model says of each.

    Attributes:
        token_ids: them.
        logprobs: natural logarithms of their probabilities after the prompt; None for a sequence's first.
        unconditional: the same without a prompt, needed by `unconditional_likelihood_normalized` only.
    """

    token_ids: tuple[int, ...]
    logprobs: Logprobs
    unconditional: Logprobs = ()


class Decision(msgspec.Struct, frozen=True):
    """The chosen one; everything else is in the order of the choices.

    Attributes:
        index: which.
        scores: what was compared. `greedy_token_selection` compares no single number: its scores are the means.
        means: mean log probabilities after the prompt.
        lengths: tokens that counted.
        matrix: of `greedy_token_selection`: what it compared, [choices, tokens of the longest].
    """

    index: int
    scores: tuple[float, ...]
    means: tuple[float, ...]
    lengths: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...] = ()


def first_difference(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Index of the first token of `whole`, a prompt and a choice, that is not the prompt's; at most that of its last token."""
    index = 0
    for one, two in zip(prompt, whole, strict=False):
        if one != two:
            break
        index += 1
    return min(index, len(whole) - 1)


def scored_from(prompt: Sequence[int], wholes: Sequence[Sequence[int]]) -> int:
    """Index from which on all choices are scored: before it, all are the prompt's tokens."""
    return min(first_difference(prompt, whole) for whole in wholes)


def decide(method: str, choices: Sequence[Scored]) -> Decision:
    """Choose by one of `METHODS`; of equal choices the first wins.

    Raises:
        ValueError: an unknown method, or no token that counts; the message is for people.
    """
    tokens = [choice.token_ids for choice in choices]
    logprobs = _alike(tokens, [choice.logprobs for choice in choices])
    rows = [tuple(value for value in row if value is not None) for row in logprobs]
    if not all(rows):
        raise ValueError("a sequence's first token has no log probability: put text before the choices")
    means = tuple(fmean(row) for row in rows)
    lengths = tuple(map(len, rows))
    if method == token_length_normalized:
        return Decision(means.index(max(means)), means, means, lengths)
    if method == greedy_token_selection:
        width = max(lengths)
        matrix = tuple(row + (mean,) * (width - len(row)) for row, mean in zip(rows, means, strict=True))
        # keeping a column's best rows, column by column, finds the lexicographic maximum
        return Decision(matrix.index(max(matrix)), means, means, lengths, matrix)
    if method == unconditional_likelihood_normalized:
        if any(None in row for row in logprobs):
            raise ValueError(
                f"{method} compares with and without a prompt, and there is none: put text before the choices"
            )
        bare = _alike(tokens, [choice.unconditional for choice in choices])
        gains = tuple(
            fmean(value - (plain or 0.0) for value, plain in zip(row, unconditional, strict=True))
            for row, unconditional in zip(rows, bare, strict=True)
        )
        return Decision(gains.index(max(gains)), gains, means, lengths)
    raise ValueError(f"there is no method {method!r}; there are {', '.join(METHODS)}")


def _alike(tokens: Sequence[tuple[int, ...]], values: Sequence[Logprobs]) -> list[Logprobs]:
    """The values, where rows begin with the same tokens those of the first such row."""
    known: dict[tuple[int, ...], float | None] = {}
    return [
        tuple(known.setdefault(ids[:end], value) for end, value in enumerate(row, 1))
        for ids, row in zip(tokens, values, strict=True)
    ]
