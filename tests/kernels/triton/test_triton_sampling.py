"""Sampling on the device against the worker's sampler: the same token for the same seed, whatever the filters. Under the interpreter."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import sample
from sgl_actors.kernels.triton import sampling
from sgl_actors.kernels.triton.sampling import Settings

pytestmark = pytest.mark.interpreted
VOCABULARY = 150


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small vocabulary takes two blocks, the last of them ragged."""
    monkeypatch.setattr(sampling, "BLOCK", 128)


def row(position: int = 7, seed: int = 1, **wanted: Any) -> SampleRow:
    return SampleRow(Sampling(seed=seed, **wanted), position)


def settings(rows: list[SampleRow]) -> Settings:
    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(row.sampling, name) for row in rows], dtype=dtype)

    return Settings(
        column("temperature", torch.float64),
        column("top_k", torch.int32),
        column("top_p", torch.float64),
        column("min_p", torch.float64),
        torch.tensor([row.sampling.seed for row in rows], dtype=torch.uint64).view(torch.int64),
        torch.tensor([row.position for row in rows]),
    )


def mixed_rows(count: int, seed: int) -> list[SampleRow]:
    chance = random.Random(seed)
    return [
        SampleRow(
            Sampling(
                seed=chance.randrange(2**64),
                temperature=chance.choice((0.0, 0.3, 1.0, 2.5)),
                top_p=chance.choice((1.0, 0.9, 0.5, 0.1, 1e-6)),
                top_k=chance.choice((-1, 0, 1, 5, 40, VOCABULARY - 1, VOCABULARY, 500)),
                min_p=chance.choice((0.0, 0.0, 0.05, 0.5)),
            ),
            chance.randrange(5000),
        )
        for _ in range(count)
    ]


def check(logits: torch.Tensor, rows: list[SampleRow], **mask: torch.Tensor) -> list[int]:
    """Fail unless the tokens are the worker's; returns them."""
    before = logits.clone()
    ours: list[int] = sampling.sample(logits, settings(rows), **mask).tolist()
    assert ours == sample(logits, rows)
    assert torch.equal(logits, before) or bool(logits.isnan().any())
    return ours


@pytest.mark.parametrize(("kind", "count"), [("spread", 5), ("tied", 5)])
def test_tokens_are_the_workers_for_any_settings(kind: str, count: int) -> None:
    """Greedy, whole and filtered rows side by side; among many equal logits the same of them are kept."""
    check(make_logits(kind, count, 0), mixed_rows(count, 0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spread", "tied", "flat", "steep"])
def test_tokens_are_the_workers_for_any_settings_long(kind: str) -> None:
    """The same over many more rows and kinds of distribution."""
    check(make_logits(kind, 30, 1), mixed_rows(30, 1))


def make_logits(kind: str, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "tied":
        return torch.randint(-2, 3, (count, VOCABULARY), generator=generator).float()
    scale = {"spread": 3.0, "flat": 0.01, "steep": 60.0}[kind]
    return torch.randn(count, VOCABULARY, generator=generator) * scale


def test_the_draw_is_a_function_of_seed_and_position() -> None:
    """Over one row of logits, many positions give the worker's tokens, and more than a few different ones."""
    logits = (
        torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(3)).expand(12, -1).contiguous()
    )
    rows = [SampleRow(Sampling(seed=2**63 + 5), position) for position in range(12)]
    assert len(set(check(logits, rows))) > 5


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    """Also where the equals lie in different blocks, or are a zero and a negative zero."""
    logits = torch.full((2, VOCABULARY), -1.0)
    logits[0, [140, 70, 9]] = 2.0
    logits[1, 100], logits[1, 30] = 0.0, -0.0
    assert check(logits, [row(temperature=0.0), row(temperature=0.0)]) == [9, 30]


def test_top_k_keeps_the_lowest_ids_of_equals() -> None:
    """With two of five equal logits kept, only the first two ids are ever drawn."""
    logits = torch.full((5, VOCABULARY), -5.0)
    logits[:, [3, 60, 61, 120, 149]] = 1.0
    rows = [row(top_k=2, position=position, seed=position) for position in range(5)]
    assert set(check(logits, rows)) == {3, 60}


@pytest.mark.parametrize("packed", [False, True])
def test_a_grammars_mask_is_heeded(packed: bool) -> None:
    """Bools of what is forbidden and bits of what is allowed give the worker's tokens for the same mask."""
    rows, logits = mixed_rows(4, 2), make_logits("spread", 4, 2)
    forbidden = np.random.default_rng(0).random((4, VOCABULARY)) < 0.9
    masked = [
        SampleRow(row.sampling, row.position, forbidden=mask)
        for row, mask in zip(rows, forbidden, strict=True)
    ]
    mask = {"allowed_bits": pack(~forbidden)} if packed else {"forbidden": torch.from_numpy(forbidden)}
    tokens = check(logits, masked, **mask)
    assert not any(forbidden[index, token] for index, token in enumerate(tokens))


def pack(allowed: np.ndarray[Any, np.dtype[np.bool_]]) -> torch.Tensor:
    """Bit i % 32 of word i // 32."""
    wide = np.pad(allowed, ((0, 0), (0, -allowed.shape[1] % 32)))
    return torch.from_numpy(np.packbits(wide, axis=1, bitorder="little").view(np.int32))


def test_a_row_without_a_distribution_gives_minus_one() -> None:
    """NaN, +inf, nothing but -inf, everything forbidden; a NaN that is forbidden does no harm, nor do its neighbours."""
    logits = torch.zeros(6, VOCABULARY)
    logits[0, 100] = float("nan")
    logits[1, 100] = float("inf")
    logits[2] = float("-inf")
    logits[4, 100] = float("nan")
    forbidden = torch.zeros(6, VOCABULARY, dtype=torch.bool)
    forbidden[3] = True
    forbidden[4, 100] = True
    tokens = sampling.sample(logits, settings([row()] * 6), forbidden=forbidden).tolist()
    assert tokens[:4] == [-1] * 4
    assert tokens[4] >= 0
    assert tokens[5] >= 0


def test_a_token_of_no_weight_is_never_drawn() -> None:
    """Logits so far below the best that their weight is 0 are left out, as is what lies at -inf."""
    logits = torch.full((3, VOCABULARY), -3000.0)
    logits[:, ::2] = float("-inf")
    logits[:, [80, 81]] = 1.0
    rows = [row(position=position) for position in range(3)]
    assert set(check(logits, rows)) <= {80, 81}


def test_masks_that_do_not_fit_are_refused() -> None:
    """Both kinds at once, a wrong shape, a wrong dtype."""
    logits, plain = torch.zeros(1, VOCABULARY), settings([row()])
    bools, bits = torch.zeros(1, VOCABULARY, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.int32)
    with pytest.raises(ValueError, match="one of them"):
        sampling.sample(logits, plain, forbidden=bools, allowed_bits=bits)
    with pytest.raises(ValueError, match=r"\[1, 149\]"):
        sampling.sample(logits, plain, forbidden=bools[:, 1:])
    with pytest.raises(ValueError, match=r"\[1, 4\]"):
        sampling.sample(logits, plain, allowed_bits=bits[:, 1:])
    with pytest.raises(ValueError, match="fp32"):
        sampling.sample(logits.half(), plain)
