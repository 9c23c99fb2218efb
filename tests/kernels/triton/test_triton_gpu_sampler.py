"""The worker's sampler for a GPU against the one for CPUs: settings, penalties, bias, bans and constraints together. Under the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgl_actors.actors.worker.gpu_sampler import sample_on_gpu
from sgl_actors.actors.worker.messages import Sampling
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import sample

pytestmark = pytest.mark.interpreted
VOCABULARY = 97


def make_rows() -> list[SampleRow]:
    """One of each kind."""
    forbidden = np.ones(VOCABULARY, np.bool_)
    forbidden[[4, 40, 96]] = False
    return [
        SampleRow(Sampling(seed=2**64 - 1, temperature=0.8), 3),
        SampleRow(Sampling(seed=-5, top_p=0.9, repetition_penalty=1.7), 9, seen=(1, 2, 50)),
        SampleRow(
            Sampling(seed=3, frequency_penalty=1.5, presence_penalty=0.5), 11, output_counts={7: 2, 60: 1}
        ),
        SampleRow(Sampling(seed=4, temperature=0.0, logit_bias=((33, 50.0), (33, 1.0))), 2),
        SampleRow(
            Sampling(seed=5, temperature=0.0, min_tokens=4, end_ids=(33,), logit_bias=((33, 50.0),)), 2
        ),
        SampleRow(Sampling(seed=6, top_k=2), 8, forbidden=forbidden),
    ]


def test_tokens_are_those_of_the_cpu() -> None:
    """Row by row, and the logits stay as they were."""
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    before, rows = logits.clone(), make_rows()
    tokens = sample_on_gpu(logits, rows)
    assert tokens == sample(logits, rows)
    assert tokens[3] == 33
    assert tokens[4] != 33
    assert tokens[5] in (4, 40, 96)
    assert torch.equal(logits, before)


def test_no_rows_are_no_tokens() -> None:
    """Nothing is launched."""
    assert sample_on_gpu(torch.empty(0, VOCABULARY), []) == []
