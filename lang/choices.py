"""Which of several choices is the most likely: token-length-normalised scoring, without I/O.

What is scored are the tokens of prompt + choice from the first one on that differs from the prompt's own tokens. So the
last token of the prompt counts only where the choice has changed it (``"un" + "able"`` may become one token), and
a choice's score does not depend on how much of the prompt a node happens to report.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Decision(msgspec.Struct, frozen=True):
    """The chosen index, every choice's score, and how many tokens each was scored by."""

    index: int
    scores: tuple[float, ...]
    lengths: tuple[int, ...]


def first_difference(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Index of the first token of `whole` to be scored: where it leaves `prompt`, and at least its last token."""
    index = 0
    for one, two in zip(prompt, whole, strict=False):
        if one != two:
            break
        index += 1
    return min(index, len(whole) - 1)


def normalized_logprob(logprobs: Sequence[float | None]) -> float:
    """Mean of those that have a value (a sequence's first token has none); `ValueError` if none has."""
    values = [value for value in logprobs if value is not None]
    if not values:
        raise ValueError("no token of the choice has a log probability: there is no prompt before it")
    return sum(values) / len(values)


def decide(logprobs: Sequence[Sequence[float | None]]) -> Decision:
    """Choose by the best mean log probability; of equal ones the first wins."""
    scores = tuple(normalized_logprob(values) for values in logprobs)
    lengths = tuple(sum(value is not None for value in values) for values in logprobs)
    return Decision(max(range(len(scores)), key=lambda index: (scores[index], -index)), scores, lengths)
