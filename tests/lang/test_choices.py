"""Scoring of choices against a plain computation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.lang.choices import decide, first_difference, normalized_logprob

logprobs = st.floats(-20, 0)


@given(st.lists(st.lists(logprobs, min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_best_mean_wins(table: list[list[float]]) -> None:
    """The decision is the first maximum of the means, whatever the lengths."""
    means = [math.fsum(row) / len(row) for row in table]
    decision = decide(table)
    assert decision.scores == pytest.approx(means)
    assert decision.scores[decision.index] == max(decision.scores)
    assert decision.index == decision.scores.index(max(decision.scores))
    assert decision.lengths == tuple(map(len, table))


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3), min_size=1))
def test_scoring_starts_where_tokens_differ(prompt: list[int], rest: list[int]) -> None:
    """Without healing that is the first token of the choice; with healing the merged token counts, too."""
    assert first_difference(prompt, prompt + rest) == len(prompt)
    if prompt:
        healed = [*prompt[:-1], 99, *rest]
        assert first_difference(prompt, healed) == len(prompt) - 1


def test_a_long_choice_is_at_no_disadvantage() -> None:
    """Two tokens at -1 beat one token at -1.5."""
    assert decide([[-1.5], [-1.0, -1.0]]).index == 1


def test_of_equal_scores_the_first_wins() -> None:
    """Ties go to the order of the choices."""
    assert decide([[-2.0], [-1.0], [-1.0]]).index == 1


def test_tokens_without_a_value_do_not_count() -> None:
    """The first token of a sequence has none; a choice with no scored token at all is an error."""
    assert normalized_logprob([None, -2.0, -4.0]) == -3.0
    with pytest.raises(ValueError, match="no prompt"):
        normalized_logprob([None])
