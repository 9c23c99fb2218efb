from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sgl_actors.actors.worker.checkpoint import load_model
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from tests.worker.harness import CPU


@pytest.fixture(scope="module", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for small models (two only wait for each other on a busy machine); a module's `THREADS` for a real one."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request.module, "THREADS", 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2(gguf_path: Path) -> CausalLM:
    return load_model(gguf_path, dtype=torch.float32, device=CPU, threads=2)
