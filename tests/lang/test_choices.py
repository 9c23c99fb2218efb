"""The three choice methods against plain computations."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.lang.choices import (
    METHODS,
    Scored,
    decide,
    first_difference,
    greedy_token_selection,
    scored_from,
    token_length_normalized,
    unconditional_likelihood_normalized,
)

Table = list[list[float]]

OR, GAN, ISM, ANT, IDIS, ESTABLISH, MENT, ARIAN = range(8)
ORGAN = (OR, GAN)
ORGANISM = (OR, GAN, ISM)
LONGEST = (ANT, IDIS, ESTABLISH, MENT, ARIAN, ISM)

wholes = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=6, unique=True
)


def words(ism: float = -0.4) -> list[Scored]:
    """Organ, organism and antidisestablishmentarianism, by a model that takes the last to be long but no surprise."""
    return [
        Scored(ORGAN, (-0.9, -1.1), (None, -4.0)),
        Scored(ORGANISM, (-0.9, -1.1, ism), (None, -4.0, -2.0)),
        Scored(LONGEST, (-3.0, -0.1, -0.1, -0.05, -0.05, -0.1), (None, -0.2, -0.1, -0.1, -0.1, -0.1)),
    ]


def model(seed: int, choices: Sequence[tuple[int, ...]]) -> list[Scored]:
    """What a made-up model says of each choice: the same of the same tokens, and often the same of others."""
    draw = random.Random(seed)
    known: dict[tuple[bool, tuple[int, ...]], float] = defaultdict(
        lambda: draw.choice([0.0, -0.5, -1.0, -3.0])
    )
    return [
        Scored(
            ids,
            tuple(known[True, ids[:end]] for end in range(1, len(ids) + 1)),
            (None, *(known[False, ids[:end]] for end in range(2, len(ids) + 1))),
        )
        for ids in choices
    ]


def plain_means(rows: Table) -> list[float]:
    return [sum(row) / len(row) for row in rows]


def plain_greedy(rows: Table) -> int:
    """Column by column: who is not among the best goes."""
    width = max(map(len, rows))
    padded = [row + [mean] * (width - len(row)) for row, mean in zip(rows, plain_means(rows), strict=True)]
    left = list(range(len(rows)))
    for column in range(width):
        best = max(padded[index][column] for index in left)
        left = [index for index in left if padded[index][column] == best]
        if len(left) == 1:
            break
    return left[0]


@given(wholes, st.integers())
def test_the_methods_are_their_definitions(choices: list[tuple[int, ...]], seed: int) -> None:
    """Index, scores and lengths are those of a plain computation, ties included: of equal choices the first wins."""
    scored = model(seed, choices)
    rows = [[value for value in one.logprobs if value is not None] for one in scored]
    means = plain_means(rows)
    gains = plain_means(
        [
            [value - (bare or 0) for value, bare in zip(row, one.unconditional, strict=True)]
            for row, one in zip(rows, scored, strict=True)
        ]
    )
    expected = {
        token_length_normalized: (means.index(max(means)), means),
        greedy_token_selection: (plain_greedy(rows), means),
        unconditional_likelihood_normalized: (gains.index(max(gains)), gains),
    }
    assert set(expected) == set(METHODS)
    for method, (index, scores) in expected.items():
        decision = decide(method, scored)
        assert decision.index == index
        assert decision.scores == pytest.approx(scores, abs=1e-12)
        assert decision.means == pytest.approx(means, abs=1e-12)
        assert decision.lengths == tuple(map(len, choices))


@given(wholes, st.integers(), st.sampled_from(METHODS))
def test_last_digits_of_shared_tokens_decide_nothing(
    choices: list[tuple[int, ...]], seed: int, method: str
) -> None:
    """A model that reports slightly different values for tokens that two choices begin with changes no decision."""
    exact = model(seed, choices)
    noise = random.Random(seed + 1)
    seen: set[tuple[int, ...]] = set()
    noisy = []
    for one in exact:
        heads = [one.token_ids[:end] for end in range(1, len(one.token_ids) + 1)]
        rows = [
            tuple(
                value if value is None or head not in seen else value + noise.uniform(-1e-6, 1e-6)
                for value, head in zip(row, heads, strict=True)
            )
            for row in (one.logprobs, one.unconditional)
        ]
        seen.update(heads)
        noisy.append(Scored(one.token_ids, *rows))
    assert decide(method, noisy) == decide(method, exact)


@given(st.lists(st.integers(0, 3)), st.lists(st.lists(st.integers(0, 3), min_size=1), min_size=1, max_size=4))
def test_scoring_starts_where_the_first_choice_leaves_the_prompt(
    prompt: list[int], rests: list[list[int]]
) -> None:
    """All choices have the prompt's tokens before the start; it is the prompt's end unless one changes the border."""
    plain = [prompt + rest for rest in rests]
    assert scored_from(prompt, plain) == len(prompt)
    if prompt:
        changed = [*prompt[:-1], 99, *rests[0]]
        assert first_difference(prompt, changed) == len(prompt) - 1
        start = scored_from(prompt, [*plain, changed])
        assert start == len(prompt) - 1
        assert all(whole[:start] == prompt[:start] for whole in [*plain, changed])


def test_a_choice_has_a_scored_token_even_if_the_tokenizer_swallows_it() -> None:
    """A text that adds no token of its own is scored by its last one, and then so are its rivals."""
    assert scored_from([1, 2, 3], [[1, 2, 3], [1, 2, 3, 4]]) == 2


def test_the_mean_favours_what_is_predictable() -> None:
    """One surprise and five foregone tokens beat two fair ones."""
    decision = decide(token_length_normalized, words())
    assert decision.index == 2
    assert decision.scores == decision.means == pytest.approx((-1.0, -0.8, -3.4 / 6))
    assert decision.lengths == (2, 3, 6)
    assert decision.matrix == ()


def test_greedy_goes_by_the_first_token_that_differs() -> None:
    """The long word falls at its first token; the short one stands on its mean against the third token of the middle one."""
    decision = decide(greedy_token_selection, words(ism=-0.4))
    assert decision.index == 1
    assert decision.matrix[0] == pytest.approx((-0.9, -1.1, -1.0, -1.0, -1.0, -1.0))
    assert decision.matrix[1] == pytest.approx((-0.9, -1.1, -0.4, -0.8, -0.8, -0.8))
    assert decide(greedy_token_selection, words(ism=-1.2)).index == 0


def test_the_unconditional_likelihood_takes_out_what_is_likely_anyway() -> None:
    """What follows from itself gains nothing by the prompt; a first token has no unconditional value and counts as it is."""
    decision = decide(unconditional_likelihood_normalized, words())
    assert decision.index == 1
    assert decision.scores == pytest.approx(((-0.9 + 2.9) / 2, (-0.9 + 2.9 + 1.6) / 3, -2.8 / 6))
    assert decision.means == pytest.approx((-1.0, -0.8, -3.4 / 6))


def test_a_certain_token_counts() -> None:
    """A log probability of exactly 0 is one, and lengthens the choice that has it."""
    decision = decide(token_length_normalized, [Scored((1, 2), (-2.0, 0.0)), Scored((3,), (-1.5,))])
    assert decision.scores == (-1.0, -1.5)
    assert decision.lengths == (2, 1)


def test_a_token_without_a_value_counts_for_none() -> None:
    """The first token of a sequence has no log probability: the choices are compared from the second on."""
    scored = [Scored((1, 2, 3), (None, -2.0, -4.0)), Scored((4, 5), (None, -1.0))]
    assert decide(token_length_normalized, scored).scores == (-3.0, -1.0)
    decision = decide(greedy_token_selection, scored)
    assert decision.matrix == ((-2.0, -4.0), (-1.0, -1.0))
    assert (decision.index, decision.lengths) == (1, (2, 1))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_choose_by_is_an_error(method: str) -> None:
    """A choice of one token and no prompt before it: the message says what to do."""
    with pytest.raises(ValueError, match="put text before"):
        decide(method, [Scored((1, 2), (None, -1.0), (None, -1.0)), Scored((3,), (None,), (None,))])


def test_the_unconditional_likelihood_needs_a_condition() -> None:
    """Without a prompt every choice would score 0 and the first would win unseen."""
    scored = [Scored((1, 2), (None, -1.0), (None, -1.0)), Scored((3, 4), (None, -2.0), (None, -2.0))]
    with pytest.raises(ValueError, match="with and without a prompt"):
        decide(unconditional_likelihood_normalized, scored)


def test_an_unknown_method_is_named() -> None:
    """The message lists those that there are."""
    with pytest.raises(ValueError, match=r"no method 'best'; there are token_length_normalized, greedy"):
        decide("best", words())
