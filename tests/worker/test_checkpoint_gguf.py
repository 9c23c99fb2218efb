"""GGUF files: written with gguf's own writer, read with ours; and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from gguf.constants import GGML_QUANT_SIZES

from sgl_actors.actors.worker.checkpoint import load_model, open_checkpoint
from sgl_actors.actors.worker.checkpoint.gguf_checkpoint import _IN_LAYER, _TOP
from sgl_actors.actors.worker.checkpoint.gguf_file import GgufFile
from sgl_actors.errors import CheckpointError
from tests.worker.harness import CPU, TOKENS, all_logits, make_theirs, their_logits

Spoil = Callable[[GGUFWriter], None]
KEYS = {"context_length": 64, "embedding_length": 32, "block_count": 3, "feed_forward_length": 64}


def interleave(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """convert_hf_to_gguf.py's `permute` for llama."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(
    path: Path,
    theirs: Any,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    keys: dict[str, Any] | None = None,
    spoil: Spoil | None = None,
    drop: str = "",
) -> None:
    """Write a transformers model as GGUF; its own weights are set to what quantisation leaves of them."""
    writer = GGUFWriter(path, architecture)
    for key, value in (KEYS | (keys or {})).items():
        if value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    config = theirs.config
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_eos_token_id(2)
    writer.add_token_list([f"token {index}" for index in range(97)])
    if spoil is not None:
        spoil(writer)
    names = {hf: gguf for gguf, hf in _TOP.items()}
    in_layer = {hf: gguf for gguf, hf in _IN_LAYER.items()}
    state = theirs.state_dict()
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if name in names:
            target = names[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            stem, _, suffix = rest.rpartition(".")
            target = f"blk.{layer}.{in_layer[stem]}.{suffix}"
        if (name == "lm_head.weight" and config.tie_word_embeddings) or target == drop:
            continue
        used = kind if values.ndim == 2 and kind != GGMLQuantizationType.F32 else GGMLQuantizationType.F32
        data = quantize(values, used)
        tensor.copy_(torch.from_numpy(dequantize(data, used).reshape(values.shape).copy()))
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            data = interleave(data, heads)
        writer.add_tensor(target, np.ascontiguousarray(data), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wide(family: str = "Llama", **changes: Any) -> Any:
    return make_theirs(family, intermediate_size=64, **changes)


def load(path: Path) -> Any:
    return load_model(path, dtype=torch.float32, device=CPU)


KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_agree_with_transformers_for_every_type(kind: str, tmp_path: Path) -> None:
    """A llama file of each type gives the logits of its dequantised weights, q and k in their right order."""
    theirs = wide()
    write_gguf(tmp_path / "m.gguf", theirs, kind=GGMLQuantizationType[kind])
    ours = load(tmp_path / "m.gguf")
    assert torch.allclose(all_logits(ours, TOKENS), their_logits(theirs), atol=2e-4)
    assert ours.config.eos_ids == (2,)
    assert ours.config.vocabulary == 97


@pytest.mark.parametrize(
    ("architecture", "family", "changes"),
    [
        ("llama", "Llama", {"tie_word_embeddings": True}),
        ("llama", "Llama", {"attention_bias": True}),
        ("qwen2", "Qwen2", {}),
        ("qwen3", "Qwen3", {"head_dim": 16}),
    ],
)
def test_logits_agree_with_transformers_for_every_family(
    architecture: str, family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Ties, biases and norms of q and k are found by the tensors that are there."""
    theirs = wide(family, **changes)
    write_gguf(tmp_path / "m.gguf", theirs, architecture)
    assert torch.allclose(all_logits(load(tmp_path / "m.gguf"), TOKENS), their_logits(theirs), atol=2e-4)


def test_a_linear_rope_scaling_is_read(tmp_path: Path) -> None:
    """Type and factor stand in the metadata."""
    theirs = wide(rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0})

    def scale(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", 3.0)

    write_gguf(tmp_path / "m.gguf", theirs, spoil=scale)
    assert torch.allclose(all_logits(load(tmp_path / "m.gguf"), TOKENS), their_logits(theirs), atol=2e-4)


def test_rope_divisors_are_read(tmp_path: Path) -> None:
    """Llama 3 files carry the divisor of each frequency as a tensor."""
    theirs = wide()
    divisors = np.array([1.0, 2.0, 4.0, 8.0], dtype=np.float32)
    write_gguf(
        tmp_path / "m.gguf", theirs, spoil=lambda writer: writer.add_tensor("rope_freqs.weight", divisors)
    )
    ours = load(tmp_path / "m.gguf")
    theirs.model.rotary_emb.inv_freq /= torch.from_numpy(divisors)
    assert torch.allclose(all_logits(ours, TOKENS), their_logits(theirs), atol=2e-4)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q2_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q8_0"])
def test_blocks_are_decoded_as_the_gguf_library_does(kind: str, tmp_path: Path) -> None:
    """Any bytes of a type, several rows of several blocks, come out as the library decodes them row by row."""
    quantization = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[quantization]
    raw = np.random.default_rng(0).integers(0, 100, (5, 3 * size), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "m.gguf")
    assert file.tensors["x"].shape == (5, 3 * block)
    assert np.array_equal(file.read(file.tensors["x"]), dequantize(raw, quantization), equal_nan=True)


METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "missing key": ({"keys": {"block_count": None}}, "key 'llama.block_count' is missing"),
    "mixture of experts": ({"keys": {"expert_count": 8}}, "mixtures of experts are not supported"),
    "partial rotary": (
        {"keys": {"rope.dimension_count": 4}},
        "rope.dimension_count is 4, expected the head's 8",
    ),
    "yarn": (
        {"spoil": lambda writer: writer.add_string("llama.rope.scaling.type", "yarn")},
        "rope.scaling.type is 'yarn', supported: none, linear",
    ),
    "wrong type": (
        {
            "keys": {"context_length": None},
            "spoil": lambda writer: writer.add_string("llama.context_length", "many"),
        },
        "key 'llama.context_length' is 'many', expected int",
    ),
    "no embedding": ({"drop": "token_embd.weight"}, "tensor 'token_embd.weight' is missing"),
    "missing tensor": (
        {"drop": "blk.2.ffn_up.weight"},
        "tensor 'model.layers.2.mlp.up_proj.weight' is missing",
    ),
    "too few layers": (
        {"keys": {"block_count": 2}},
        "tensor 'model.layers.2.* has no place in a LlamaForCausalLM",
    ),
    "wrong shape": ({"keys": {"feed_forward_length": 62}}, "has shape \\(64, 32\\), expected \\(62, 32\\)"),
    "foreign tensor": (
        {
            "spoil": lambda writer: writer.add_tensor(
                "blk.0.ffn_gate_inp.weight", np.ones(3, dtype=np.float32)
            )
        },
        "'blk.0.ffn_gate_inp.weight' has no place",
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_a_file_that_says_something_else_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """The error names the file and the key or tensor."""
    options, message = METADATA[name]
    path = tmp_path / "m.gguf"
    write_gguf(path, wide(), **options)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in caught.value.message


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """The supported ones are listed."""
    write_gguf(tmp_path / "m.gguf", wide(), "mamba")
    with pytest.raises(
        CheckpointError, match=r"general\.architecture is 'mamba', supported: llama, qwen2, qwen3"
    ):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """In the header or in the weights: an error that names the file, never a crash or garbage."""
    path = tmp_path / "m.gguf"
    write_gguf(path, wide())
    whole = path.read_bytes()
    assert open_checkpoint(path).config.layers == 3
    for length in [0, 3, 4, 7, 15, 23, *range(24, len(whole) - 1, 997), len(whole) - 33]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.gguf: (truncated|starts with|cannot be read)"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"PK\x03\x04 something else", "starts with b'PK.*', expected a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1, expected one of"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF version 50331648"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77),
            "unknown type 77",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "truncated"),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + struct.pack("<Q", 1)
            + b"a"
            + struct.pack("<IIQ", 9, 4, 2**50),
            "truncated",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQIQ", 1, 32, 999, 0),
            "tensor 'a' is of the unknown type 999",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQIQ", 1, 33, 3, 0),
            "tensor 'a' has shape \\(33,\\), which Q4_1 cannot hold",
        ),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(header: bytes, message: str, tmp_path: Path) -> None:
    """Magic, version, byte order, types and lengths are checked before they are believed."""
    path = tmp_path / "m.gguf"
    path.write_bytes(header)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
