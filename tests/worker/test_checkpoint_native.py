"""Checkpoints loaded for the native engine: its logits are those of transformers for the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from sgl_actors.actors.worker.checkpoint import Compute, load_native_model
from sgl_actors.actors.worker.model.causal_lm import ForwardBatch
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.cpu import native
from tests.worker.harness import CPU, TOKENS, make_theirs, their_logits
from tests.worker.test_checkpoint_gguf import wide, write_gguf

SLACK = 0.06
"""What 8 bits cost a model this small, relative to its logits."""

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")


def logits(path: Path, compute: Compute, kv: torch.dtype = torch.float32) -> torch.Tensor:
    """[tokens, vocabulary] of `TOKENS`."""
    model = load_native_model(path, compute=compute, kv_dtype=kv)
    config, places = model.config, torch.arange(len(TOKENS))
    pool = KvPool(
        layers=config.layers,
        pages=len(TOKENS),
        page_size=1,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=kv,
        device=CPU,
    )
    batch = ForwardBatch(torch.tensor(TOKENS), places, places, [AttentionRow(places, len(TOKENS))])
    return model.logits(model.forward(batch, pool))


@pytest.mark.parametrize(
    ("architecture", "family", "changes"),
    [
        ("llama", "Llama", {"tie_word_embeddings": True}),
        ("llama", "Llama", {"attention_bias": True}),
        ("qwen2", "Qwen2", {}),
        ("qwen3", "Qwen3", {"head_dim": 16}),
    ],
)
def test_fp32_is_the_model_of_transformers(
    architecture: str, family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Ties, biases and norms of q and k come through, in their right order."""
    theirs = wide(family, **changes)
    write_gguf(tmp_path / "m.gguf", theirs, architecture)
    assert torch.allclose(logits(tmp_path / "m.gguf", "fp32"), their_logits(theirs), atol=2e-4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q5_1", "F16"])
def test_codes_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    """Near the model of the dequantised weights: off by what int8 activations cost, and 8 bits where the file has no codes."""
    theirs = wide()
    write_gguf(tmp_path / "m.gguf", theirs, kind=GGMLQuantizationType[kind])
    wanted = their_logits(theirs)
    assert (logits(tmp_path / "m.gguf", "auto") - wanted).norm() < SLACK * wanted.norm()


def test_rows_of_no_whole_blocks_are_kept_in_fp32(tmp_path: Path) -> None:
    """Beside others that are kept in 8 bits."""
    theirs = make_theirs("Llama")
    write_gguf(tmp_path / "m.gguf", theirs, keys={"feed_forward_length": 40})
    wanted = their_logits(theirs)
    assert (logits(tmp_path / "m.gguf", "int8") - wanted).norm() < SLACK * wanted.norm()


def test_a_folder_in_bf16_is_read(tmp_path: Path) -> None:
    """Exact in fp32 mode, which keeps bf16 weights as they are."""
    theirs = wide()
    for parameter in theirs.parameters():
        parameter.data = parameter.data.bfloat16().float()
    wanted = their_logits(theirs)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    assert torch.allclose(logits(tmp_path, "fp32"), wanted, atol=2e-4)


@pytest.mark.parametrize(
    "sizes",
    [{"sliding_window": 5}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}],
)
def test_windows_are_seen(sizes: dict[str, Any], tmp_path: Path) -> None:
    """A sliding window of all layers or of some limits what the native attention reads."""
    theirs = wide("Qwen2" if "max_window_layers" in sizes else "Mistral", **sizes)
    theirs.save_pretrained(tmp_path)
    assert torch.allclose(logits(tmp_path, "fp32"), their_logits(theirs), atol=2e-4)


def test_keys_and_values_in_fp16_are_near(tmp_path: Path) -> None:
    """A pool of half the bytes costs less than a thousandth of the logits, though not nothing."""
    theirs = wide()
    theirs.save_pretrained(tmp_path)
    wanted, found = their_logits(theirs), logits(tmp_path, "fp32", torch.float16)
    assert 0 < (found - wanted).norm() < 1e-3 * wanted.norm()
    assert not torch.equal(found, logits(tmp_path, "fp32"))


@pytest.mark.parametrize("token", [-1, 1 << 40])
def test_a_token_that_is_not_in_the_embedding_is_refused(token: int, tmp_path: Path) -> None:
    """No memory behind the weights is read for it."""
    write_gguf(tmp_path / "m.gguf", wide())
    model = load_native_model(tmp_path / "m.gguf")
    config, places = model.config, torch.arange(2)
    kv = torch.empty(config.layers, 2, 2, config.kv_heads, config.head_dim)
    with pytest.raises(ValueError, match="of an embedding of"):
        model.engine.forward(torch.tensor([1, token]), [AttentionRow(places, 2)], kv)
    with pytest.raises(ValueError, match="for 1 tokens"):
        model.engine.forward(torch.tensor([1]), [AttentionRow(places, 2)], kv)


def test_no_rows_have_no_logits(tmp_path: Path) -> None:
    """Neither have no tokens a hidden state."""
    write_gguf(tmp_path / "m.gguf", wide())
    model = load_native_model(tmp_path / "m.gguf")
    config = model.config
    kv = torch.empty(config.layers, 2, 2, config.kv_heads, config.head_dim)
    hidden = model.engine.forward(torch.empty(0, dtype=torch.int64), [], kv)
    assert model.logits(hidden).shape == (0, config.vocabulary)
