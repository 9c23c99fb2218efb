"""Hugging Face folders: every family against transformers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_actors.actors.worker.checkpoint import load_model, open_checkpoint
from sgl_actors.errors import CheckpointError
from tests.worker.harness import CPU, TOKENS, all_logits, make_theirs, their_logits

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("Llama", {"head_dim": 16}),
    "llama linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    ),
    "llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral sliding window": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen2 sliding window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
}


def load(folder: Path) -> Any:
    return load_model(folder, dtype=torch.float32, device=CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole Llama checkpoint to spoil."""
    make_theirs().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_agree_with_transformers(name: str, tmp_path: Path) -> None:
    """What transformers saved gives transformers' logits."""
    family, changes = FAMILIES[name]
    theirs = make_theirs(family, **changes)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert torch.allclose(all_logits(ours, TOKENS), their_logits(theirs), atol=2e-4)
    assert ours.config.eos_ids == (2, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    """bf16 and fp16 weights compute in fp32 what their rounded values say."""
    theirs = make_theirs()
    for parameter in theirs.parameters():
        parameter.data = parameter.data.to(dtype)
    theirs.save_pretrained(tmp_path)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.float()
    assert torch.allclose(all_logits(load(tmp_path), TOKENS), their_logits(theirs), atol=2e-4)


def test_shards_make_one_model(tmp_path: Path) -> None:
    """An index with many files loads as one; progress ends at all bytes."""
    theirs = make_theirs()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    seen: list[tuple[int, int]] = []
    ours = load_model(
        tmp_path, dtype=torch.float32, device=CPU, threads=2, progress=lambda *at: seen.append(at)
    )
    assert torch.allclose(all_logits(ours, TOKENS), their_logits(theirs), atol=2e-4)
    done = [at[0] for at in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1] == sum(p.numel() * 4 for p in theirs.parameters())


def test_config_of_transformers_4_is_read(folder: Path) -> None:
    """`rope_theta` and `rope_scaling` at the top level mean the same as `rope_parameters`."""
    change_config(folder, rope_parameters=None, rope_theta=500.0, rope_scaling={**LLAMA3, "rope_theta": None})
    rotary = open_checkpoint(folder).config.rotary
    assert (rotary.theta, rotary.kind, rotary.factor, rotary.original) == (500.0, "llama3", 4.0, 32)


def test_end_ids_of_the_generation_config_count_too(folder: Path) -> None:
    """Chat models state their turn's end there."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert open_checkpoint(folder).config.eos_ids == (2, 5, 7)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def configure(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    "config is no JSON": (write("config.json", b"{nope"), "config.json: not readable as JSON"),
    "config is a list": (write("config.json", b"[]"), "config.json: expected a JSON object"),
    "unknown family": (configure(architectures=["FooForCausalLM"]), "config.json: architectures is \\['FooForCausalLM'\\], supported: Llama"),
    "missing key": (configure(hidden_size=None), "config.json: key 'hidden_size' is missing"),
    "key of a wrong type": (configure(num_hidden_layers="3"), "key 'num_hidden_layers' is '3', expected int"),
    "true is no number": (configure(num_hidden_layers=True), "key 'num_hidden_layers' is True, expected int"),
    "no layers": (configure(num_hidden_layers=0), "layers is 0, expected at least 1"),
    "uneven heads": (configure(num_key_value_heads=3), "4 attention heads do not share 3"),
    "yarn": (configure(rope_parameters={"rope_type": "yarn", "factor": 2.0}), "rope scaling 'yarn' is not supported"),
    "activation": (configure(hidden_act="gelu"), "hidden_act is 'gelu', supported: silu"),
    "quantised": (configure(quantization_config={"bits": 4}), "quantised safetensors are not supported"),
    "partial rotary": (configure(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "end id": (configure(eos_token_id="</s>"), "key 'eos_token_id' is '</s>'"),
    "truncated weights": (truncate, "model.safetensors: not a whole safetensors file"),
    "garbage weights": (write("model.safetensors", b"garbage garbage"), "model.safetensors: not a whole safetensors file"),
    "pickled weights": (pickle_instead, "pytorch_model.bin is a pickle, which is never loaded"),
    "missing tensor": (rewrite(lambda tensors: tensors.__delitem__(NORM)), f"tensor '{NORM}' is missing"),
    "wrong shape": (rewrite(lambda tensors: tensors.update({NORM: torch.ones(31)})), "has shape \\(31,\\), expected \\(32,\\)"),
    "foreign tensor": (rewrite(lambda tensors: tensors.update({"model.layers.0.extra": torch.ones(3)})), "'model.layers.0.extra' has no place"),
    "integer tensor": (rewrite(lambda tensors: tensors.update({NORM: torch.ones(32, dtype=torch.int8)})), "dtype I8, expected one of"),
    "index without a map": (write("model.safetensors.index.json", b"{}"), "index.json: key 'weight_map' is missing"),
    "index names a missing file": (
        write("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}'),
        "names the file 'gone.safetensors', which is not in the folder",
    ),
    "index leaves the folder": (
        write("model.safetensors.index.json", b'{"weight_map": {"a": "../config.json"}}'),
        "names the file '../config.json', which is not in the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_broken_folder_is_refused_by_name(name: str, folder: Path) -> None:
    """The error names the file and what was expected."""
    spoil, message = DAMAGE[name]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in caught.value.message


def test_a_path_that_is_no_model_is_refused(folder: Path) -> None:
    """A missing path, an empty folder, and a bare safetensors file each say what to give instead."""
    with pytest.raises(CheckpointError, match="no such file"):
        load(folder / "absent")
    with pytest.raises(CheckpointError, match="name the folder"):
        load(folder / "model.safetensors")
