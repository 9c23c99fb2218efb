"""The sampler against naive oracles."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.worker.log_probabilities import log_probabilities
from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import _splitmix, candidates, sample, uniform
from tests.worker.plain_sampler import plain_candidates, plain_sample

quantised = st.lists(st.integers(-20, 20).map(lambda x: x / 4), min_size=1, max_size=40)
"""Logits with many ties."""


def row(position: int = 0, **wanted: Any) -> SampleRow:
    return SampleRow(Sampling(**({"seed": 1} | wanted)), position)


def naive_candidates(logits: list[float], sampling: Sampling) -> list[int]:
    """top_k, then top_p over what is left, then min_p; one token at a time, ties to the lower id."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    best = max(logits)
    weights = {token: math.exp((logits[token] - best) / sampling.temperature) for token in order}
    if sampling.top_p < 1:
        goal, mass, kept = sampling.top_p * sum(weights.values()), 0.0, []
        for token in order:
            kept.append(token)
            mass += weights[token]
            if mass >= goal:
                break
        order = kept
    return sorted(token for token in order if weights[token] >= sampling.min_p)


@settings(max_examples=300, deadline=None)
@given(
    logits=quantised,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([-1, 1, 2, 5, 39, 1000]),
    top_p=st.sampled_from([1.0, 0.999, 0.83, 0.41, 0.0001]),
    min_p=st.sampled_from([0.0, 0.02, 0.37, 1.0]),
)
def test_candidates_are_those_of_the_naive_oracle(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """top_k, top_p and min_p leave the same tokens, ties and all."""
    sampling = Sampling(seed=0, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, _ = candidates(torch.tensor(logits), sampling)
    assert ids.tolist() == naive_candidates(logits, sampling)


wanted_by_rows = st.builds(
    Sampling,
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 100.0]),
    top_k=st.sampled_from([-1, 1, 3, 50, 700, 5000]),
    top_p=st.sampled_from([1.0, 0.9999, 0.95, 0.3]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.sampled_from([(), ((0, 3.7), (2, -100.0), (0, 0.1))]),
    min_tokens=st.sampled_from([0, 9]),
    end_ids=st.sampled_from([(), (1, 2)]),
)


def make_logits(kind: str, rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Of the kinds that matter: peaked, flat, with many ties, with little between them, partly ruled out."""
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        return (logits * 2).round()
    if kind == "near":
        return 20 + logits * 1e-6
    if kind == "ruled out":
        return torch.where(logits > 0.5, logits, float("-inf"))
    return logits * {"peaked": 6.0, "flat": 0.05}[kind]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_tokens_are_bit_for_bit_those_of_the_plain_sampler(data: st.DataObject) -> None:
    """Whatever rows ask for, and whatever the logits are."""
    count, seed = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 9999))
    vocabulary = data.draw(st.sampled_from([3, 255, 256, 700, 3000]))
    kind = data.draw(st.sampled_from(["peaked", "flat", "ties", "near", "ruled out"]))
    logits = make_logits(kind, count, vocabulary, seed)
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        seen = tuple(draw.choice(vocabulary, size=min(vocabulary, 20), replace=False).tolist())
        forbidden = draw.random(vocabulary) < 0.4 if data.draw(st.booleans()) else None
        counts = {token: 1 + token % 3 for token in seen[::2]}
        rows.append(
            SampleRow(data.draw(wanted_by_rows), int(draw.integers(9999)), 5, counts, seen, forbidden)
        )
    before = logits.clone()
    assert sample(logits, rows) == plain_sample(logits, rows)
    assert torch.equal(logits, before)


@settings(max_examples=150, deadline=None)
@given(
    wanted=wanted_by_rows.filter(lambda wanted: wanted.temperature > 0.1),
    kind=st.sampled_from(["peaked", "flat", "ties", "near", "ruled out"]),
    vocabulary=st.sampled_from([1, 256, 900, 20000]),
    seed=st.integers(0, 9999),
)
def test_candidates_are_bit_for_bit_those_of_the_plain_sampler(
    wanted: Sampling, kind: str, vocabulary: int, seed: int
) -> None:
    """The same ids with the same weights."""
    logits = make_logits(kind, 1, vocabulary, seed)[0]
    logits[seed % vocabulary] = 1.0
    ids, weights = candidates(logits, wanted)
    plain_ids, plain_weights = plain_candidates(logits, wanted)
    if wanted.top_k > 0:  # what has no weight is never drawn: which of it is left does not matter
        ids, weights, plain_ids, plain_weights = (
            ids[weights > 0],
            weights[weights > 0],
            plain_ids[plain_weights > 0],
            plain_weights[plain_weights > 0],
        )
    assert torch.equal(ids, plain_ids)
    assert torch.equal(weights, plain_weights)


def test_tokens_of_equal_weight_though_not_of_equal_logit_are_a_tie() -> None:
    """At a temperature this high fp64 cannot tell them apart: the lower id goes first, however little its logit."""
    logits = torch.linspace(1, 2, 2000)
    wanted = Sampling(seed=0, temperature=1e18, top_k=5)
    assert candidates(logits, wanted)[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.9999])
def test_top_p_over_a_large_vocabulary_looks_as_far_as_it_must(top_p: float) -> None:
    """A flat distribution needs more candidates than the first look takes."""
    logits = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 0.1
    ids, _ = candidates(logits, Sampling(seed=0, top_p=top_p))
    assert ids.tolist() == naive_candidates(logits.double().tolist(), Sampling(seed=0, top_p=top_p))


def test_the_uniform_number_is_fixed_for_all_time() -> None:
    """Seeds that are stored in journals must draw the same tokens later."""
    assert uniform(0, 0) == 0.6524484863740322
    assert uniform(2**63 - 1, 12345) == 0.8840895874142649
    assert _splitmix(0) == 0xE220A8397B1DCDAF  # the first output of the published generator


def test_uniform_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    """Mean, variance and neighbours behave as independent draws do."""
    for draws in (
        np.array([uniform(7, position) for position in range(20000)]),
        np.array([uniform(seed, 7) for seed in range(20000)]),
    ):
        assert draws.min() >= 0
        assert draws.max() < 1
        assert abs(draws.mean() - 0.5) < 0.01
        assert abs(draws.var() - 1 / 12) < 0.005
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.5}])
def test_samples_follow_the_distribution(filters: dict[str, Any]) -> None:
    """Over many positions, tokens come up as often as their probability says (chi-square)."""
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5, 0.5, -3.0])
    ids, weights = candidates(logits, Sampling(**({"seed": 3} | filters)))
    expected = weights / weights.sum()
    count = 6000
    rows = [row(position, **filters) for position in range(count)]
    seen = Counter(sample(logits.expand(count, -1), rows))
    assert set(seen) <= set(ids.tolist())
    statistic = sum(
        (seen[i] - count * p) ** 2 / (count * p) for i, p in zip(ids.tolist(), expected.tolist(), strict=True)
    )
    assert statistic < 3 * len(ids) + 10


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_token_does_not_depend_on_the_batch_it_is_sampled_in(data: st.DataObject) -> None:
    """Every row gives the token that it gives alone, whatever the others ask for."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    options = st.builds(
        Sampling,
        seed=st.integers(0, 2**63 - 1),
        temperature=st.sampled_from([0.0, 0.7, 1.3]),
        top_k=st.sampled_from([-1, 3]),
        top_p=st.sampled_from([1.0, 0.7]),
        min_p=st.sampled_from([0.0, 0.05]),
        logit_bias=st.sampled_from([(), ((3, 2.5),)]),
    )
    rows = [
        SampleRow(data.draw(options), data.draw(st.integers(0, 5000)))
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    logits = torch.randn(len(rows), 999, generator=generator) * 2
    together = sample(logits, rows)
    assert together == [sample(logits[index : index + 1], [one])[0] for index, one in enumerate(rows)]


def test_the_same_seed_and_position_give_the_same_token_and_others_differ() -> None:
    """A replay repeats; another seed or position draws anew."""
    logits = torch.zeros(1, 1000)
    first = sample(logits, [row(5)])
    assert sample(logits, [row(5)]) == first
    assert sample(logits, [row(6)]) != first
    assert sample(logits, [row(5, seed=2)]) != first


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    """Ties are settled by token id."""
    assert sample(torch.tensor([[1.0, 3.0, 3.0]]), [row(temperature=0.0)]) == [1]


def test_penalties_do_what_their_definitions_say() -> None:
    """Frequency per occurrence, presence once, repetition by sign; each against numbers worked out by hand."""
    logits = torch.tensor([[4.0, 3.9, 3.8, -1.0]])

    def greedy(counts: dict[int, int], seen: tuple[int, ...], **wanted: Any) -> int:
        sampling = Sampling(seed=0, temperature=0.0, **wanted)
        return sample(logits, [SampleRow(sampling, 9, 5, counts, seen)])[0]

    assert greedy({0: 2, 1: 1}, (), frequency_penalty=0.12) == 2  # 3.76, 3.78, 3.8
    assert greedy({0: 2, 1: 1}, (), frequency_penalty=0.09) == 0  # 3.82, 3.81, 3.8
    assert greedy({0: 2}, (), presence_penalty=0.15) == 1  # 3.85, 3.9
    assert greedy({0: 2}, (), presence_penalty=0.05) == 0
    assert greedy({}, (0, 3), repetition_penalty=1.03) == 1  # 3.88, 3.9
    assert (
        greedy({}, (0, 1, 2, 3), repetition_penalty=1000.0) == 0
    )  # positive ones shrink, the negative one grows
    assert greedy({0: 1}, (), presence_penalty=-0.1) == 0


def test_logit_bias_bans_and_forces() -> None:
    """A bias of -100 bans, of 100 forces; two entries of one token add up."""
    logits = torch.tensor([[4.0, 3.0, 2.0]])
    assert sample(logits, [row(temperature=0.0, logit_bias=((0, -100.0),))]) == [1]
    assert sample(logits, [row(temperature=0.0, logit_bias=((2, 100.0),))]) == [2]
    assert sample(logits, [row(temperature=0.0, logit_bias=((2, 1.5), (2, 1.5)))]) == [2]
    assert logits.tolist() == [[4.0, 3.0, 2.0]]


def test_end_tokens_are_forbidden_before_min_tokens() -> None:
    """They may come as output token number min_tokens + 1 at the earliest."""
    logits = torch.tensor([[4.0, 3.0, 2.0]])
    sampling = Sampling(seed=0, temperature=0.0, min_tokens=3, end_ids=(0,))
    tokens = [sample(logits, [SampleRow(sampling, 10 + length, length)])[0] for length in (0, 2, 3)]
    assert tokens == [1, 1, 0]


def test_rows_without_a_distribution_are_reported_and_others_are_not_harmed() -> None:
    """NaN, +inf, and nothing but -inf give -1, greedy or sampled, filtered or not."""
    bad = [[math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0], [-math.inf] * 3]
    good = [0.0, -math.inf, 9.0]
    settings_of_rows: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"top_p": 0.5}]
    for wanted in settings_of_rows:
        logits = torch.tensor([*bad, good])
        assert sample(logits, [row(**wanted)] * 4) == [-1, -1, -1, 2]


def test_a_token_of_no_probability_is_never_drawn() -> None:
    """-inf stands for a ban, wherever in the vocabulary it is."""
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]).expand(500, -1)
    assert set(sample(logits, [row(position) for position in range(500)])) == {1, 3}


def test_log_probabilities_are_of_the_plain_distribution() -> None:
    """Each row reports its token and as many alternatives as it asked for, most likely first."""
    logits = torch.tensor([[0.0, math.log(3.0), 0.0], [1.0, 1.0, 5.0]])
    one, two = log_probabilities(logits, [0, 2], [2, 0])
    assert one.token_id == 0
    assert one.logprob == pytest.approx(math.log(0.2))
    assert one.top[0][0] == 1
    assert one.top[0][1] == pytest.approx(math.log(0.6))
    assert len(one.top) == 2
    assert two.logprob == pytest.approx(-2 * math.exp(-4), rel=0.1)
    assert two.top == ()
    assert log_probabilities(logits, [0, 1], [9, 9])[0].top[2][0] in (0, 2)
