"""Weights as codes: what a file keeps comes through exactly, what it does not is rounded to the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.actors.worker.checkpoint import open_checkpoint
from sgl_actors.actors.worker.checkpoint.gguf_blocks import decode
from sgl_actors.actors.worker.checkpoint.quantized import (
    BLOCK,
    Floats,
    Quantized,
    can_quantize,
    quantize_q4,
    quantize_q8,
    stack,
)
from sgl_actors.actors.worker.checkpoint.reader import CheckpointReader, Compute
from sgl_actors.errors import CheckpointError
from tests.worker.harness import make_theirs
from tests.worker.test_checkpoint_gguf import wide, write_gguf

KEPT = {"Q4_0": "q4", "Q4_1": "q4", "Q4_K": "q4w", "Q8_0": "q8"}
ROWS, COLUMNS = 6, 512


def random_blocks(kind: GGMLQuantizationType, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[ROWS, bytes] of any codes; fp16 factors, of both signs, are not too great."""
    block, size = GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (ROWS * COLUMNS // block, size), dtype=np.uint8)
    factors = 2 if kind.name in ("Q4_1", "Q4_K") else 1
    raw[:, : 2 * factors] = generator.normal(size=(len(raw), factors)).astype(np.float16).view(np.uint8)
    if kind.name == "Q8_0":
        codes = raw[:, 2:].view(np.int8)
        codes[codes == -128] = 127
    return raw.reshape(ROWS, -1)


def normal(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Floats:
    values: Floats = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    return values


@pytest.mark.parametrize("name", KEPT)
def test_a_file_s_codes_have_exactly_the_values_that_gguf_gives_them(name: str) -> None:
    """Any block: the same fp32 numbers as the library's; scale and minimum fit where the kind says so."""
    kind = GGMLQuantizationType[name]
    raw = random_blocks(kind)
    found = decode(raw, kind)
    assert found is not None
    assert found.kind == KEPT[name]
    assert found.codes.dtype == (np.int8 if name == "Q8_0" else np.uint8)
    assert found.shape == (ROWS, COLUMNS)
    assert np.array_equal(found.dequantize(), dequantize(raw, kind))
    if found.kind != "q4w":
        for factors in (found.scale, found.minimum):
            if factors is not None:
                assert np.array_equal(factors, factors.astype(np.float16).astype(np.float32))


def test_a_minimum_too_great_for_fp16_makes_a_wide_kind() -> None:
    """Q4_0's minimum is -8 scales, which fp16 does not always hold."""
    raw = random_blocks(GGMLQuantizationType.Q4_0)
    raw[3, :2] = np.array([60000.0], np.float16).view(np.uint8)
    found = decode(raw, GGMLQuantizationType.Q4_0)
    assert found is not None
    assert found.kind == "q4w"
    assert np.array_equal(found.dequantize(), dequantize(raw, GGMLQuantizationType.Q4_0))


def test_eight_bit_codes_that_no_kernel_takes_are_not_kept() -> None:
    """-128 has no counterpart of the other sign: such a tensor is to be read dequantised."""
    raw = random_blocks(GGMLQuantizationType.Q8_0)
    raw[2, 7] = 0x80
    assert decode(raw, GGMLQuantizationType.Q8_0) is None


@pytest.mark.parametrize("name", ["F16", "Q5_0", "Q6_K"])
def test_other_types_are_not_kept(name: str) -> None:
    """They are dequantised by their reader."""
    kind = GGMLQuantizationType[name]
    assert decode(random_blocks(kind), kind) is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), size=st.floats(0.1, 100), spread=st.floats(0, 1.5))
def test_eight_bits_are_within_half_a_step(seed: int, size: float, spread: float) -> None:
    """No weight is further off than half of its block's scale, a rounding of that apart; scales are fp16 numbers."""
    values = normal(4, 96, seed) * np.float32(size) * np.exp(spread * normal(4, 96, seed + 1))
    found = quantize_q8(values)
    step = np.repeat(found.scale, BLOCK, axis=1)
    assert (np.abs(found.dequantize() - values) <= 0.57 * step).all()
    assert np.abs(found.codes).max() <= 127
    assert np.array_equal(found.scale, found.scale.astype(np.float16).astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), offset=st.floats(-3, 3))
def test_four_bits_are_within_half_a_step(seed: int, offset: float) -> None:
    """16 levels from a block's least value to its greatest, wherever those lie."""
    values = normal(4, 96, seed) + np.float32(offset)
    found = quantize_q4(values)
    step = np.repeat(found.scale, BLOCK, axis=1)
    assert (np.abs(found.dequantize() - values) <= 0.52 * step).all()
    assert found.codes.max() == 15
    assert found.codes.min() == 0


@pytest.mark.parametrize("quantize", [quantize_q8, quantize_q4])
def test_a_block_of_equal_values_needs_no_scale(quantize: Any) -> None:
    """All zero stays zero, without a division by 0."""
    values = np.zeros((2, 64), np.float32)
    values[1] = 0.5
    assert np.allclose(quantize(values).dequantize(), values, atol=1e-3)
    assert not quantize(values).dequantize()[0].any()


@pytest.mark.parametrize("quantize", [quantize_q8, quantize_q4])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e8])
def test_what_fp16_scales_cannot_hold_is_refused(quantize: Any, wrong: float) -> None:
    """Rather than a block of NaN."""
    values = np.ones((2, 64), np.float32)
    values[1, 40] = wrong
    with pytest.raises(ValueError, match="not finite, or too great"):
        quantize(values)


def test_many_rows_are_quantised_as_one_by_one() -> None:
    """Whatever a chunk is."""
    values = normal(300, 512)
    for quantize in (quantize_q8, quantize_q4):
        whole, last = quantize(values), quantize(values[290:])
        assert np.array_equal(whole.codes[290:], last.codes)
        assert np.array_equal(whole.scale[290:], last.scale)


def kept(kind: str, seed: int = 0) -> Quantized:
    found = decode(random_blocks(GGMLQuantizationType[kind], seed), GGMLQuantizationType[kind])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["Q4_1"], "q4"), (["Q4_0", "Q4_1"], "q4"), (["Q4_1", "Q4_K"], "q4w"), (["Q8_0", "Q8_0"], "q8")],
)
def test_stacked_matrices_keep_their_values(names: list[str], kind: str) -> None:
    """Rows follow one another; the kind is the narrowest that holds all."""
    parts = [kept(name, seed) for seed, name in enumerate(names)]
    found = stack(parts)
    assert found.kind == kind
    assert np.array_equal(found.dequantize(), np.concatenate([part.dequantize() for part in parts]))


def test_four_bits_stacked_with_eight_become_eight() -> None:
    """Those of 8 bits stay exact, the others are rounded."""
    four, eight = kept("Q4_K"), kept("Q8_0")
    found = stack([four, eight])
    assert (found.kind, found.minimum) == ("q8", None)
    assert np.array_equal(found.dequantize()[ROWS:], eight.dequantize())
    assert np.allclose(found.dequantize()[:ROWS], four.dequantize(), atol=0.57 * found.scale[:ROWS].max())


def test_only_matrices_of_whole_blocks_can_be_quantised() -> None:
    """Norms, biases and odd widths stay as they are."""
    assert can_quantize((3, 64))
    assert not any(map(can_quantize, [(64,), (3, 40), (2, 3, 32)]))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_checkpoint_s_codes_are_its_tensors(kind: str, tmp_path: Path) -> None:
    """Every tensor of a llama file read as codes has the values it has read dequantised, q and k in their right order."""
    write_gguf(tmp_path / "m.gguf", wide(), kind=GGMLQuantizationType[kind])
    source = open_checkpoint(tmp_path / "m.gguf")
    matrices = 0
    for name in source.sizes:
        found, values = source.read_quantized(name), source.read(name).numpy()
        assert (found is None) == (values.ndim == 1)
        if found is not None:
            matrices += 1
            assert np.array_equal(found.dequantize(), values)
    assert matrices == 3 * 7 + 2


PROJECTION = "self_attn.o_proj.weight"


def read_all(path: Path, compute: Compute) -> dict[str, torch.Tensor | Quantized]:
    """Everything, in the order of a builder; matrices by their last name."""
    found: dict[str, torch.Tensor | Quantized] = {}
    with CheckpointReader(open_checkpoint(path), compute=compute) as reader:
        found["embedding"] = reader.matrix("model.embed_tokens.weight")
        found["head"] = reader.matrix("lm_head.weight")
        found["norm"] = reader.tensor("model.norm.weight")
        for prefix in reader.layers():
            qkv = [f"{prefix}self_attn.{name}_proj.weight" for name in "qkv"]
            found[prefix + "qkv"] = reader.matrix(*qkv)
            found[prefix + "down"] = reader.matrix(prefix + "mlp.down_proj.weight")
            found[prefix + "norm"] = reader.tensor(prefix + "input_layernorm.weight")
            assert reader.bias(*qkv) is None
    return found


@pytest.mark.parametrize("compute", get_args(Compute))
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_1", "Q8_0", "Q5_1"])
def test_matrices_come_as_they_are_wanted(kind: str, compute: Compute, tmp_path: Path) -> None:
    """fp32: values. auto: the file's codes, 8 bits for anything else. int8 and int4: that, but embedding and head never with fewer than 8 by choice."""
    write_gguf(tmp_path / "m.gguf", wide(), kind=GGMLQuantizationType[kind])
    exact, found = read_all(tmp_path / "m.gguf", "fp32"), read_all(tmp_path / "m.gguf", compute)
    own = {"Q4_1": "q4", "Q8_0": "q8"}.get(kind, "q8")
    layers = {"auto": own, "int8": "q8", "int4": "q4"}.get(compute)
    for name, value in found.items():
        wanted = exact[name]
        assert isinstance(wanted, torch.Tensor)
        if compute == "fp32" or name.endswith("norm"):
            assert isinstance(value, torch.Tensor)
            assert torch.equal(value, wanted)
            continue
        assert isinstance(value, Quantized)
        if name.startswith("model.layers."):
            assert value.kind == layers
        else:
            assert value.kind == (own if compute == "auto" else "q8")
        tolerance = 0.0 if value.kind == own and kind in ("Q4_1", "Q8_0") else 0.57 * float(value.scale.max())
        assert np.abs(value.dequantize() - wanted.numpy()).max() <= tolerance


def test_rows_of_no_whole_blocks_come_as_values(tmp_path: Path) -> None:
    """A width of 40 is no multiple of 32."""
    write_gguf(tmp_path / "m.gguf", make_theirs("Llama"), keys={"feed_forward_length": 40})
    found = read_all(tmp_path / "m.gguf", "auto")
    assert isinstance(found["model.layers.0.down"], torch.Tensor)
    assert isinstance(found["model.layers.0.qkv"], Quantized)


def test_weights_that_cannot_be_quantised_are_refused_by_name(tmp_path: Path) -> None:
    """The error names file and tensor, and the way out."""
    theirs = wide()
    with torch.no_grad():
        theirs.model.layers[1].mlp.down_proj.weight[3, 5] = 1e30
    write_gguf(tmp_path / "m.gguf", theirs)
    with pytest.raises(
        CheckpointError, match=r"m\.gguf: tensor 'model\.layers\.1\.mlp\.down_proj.*fp32"
    ) as caught:
        read_all(tmp_path / "m.gguf", "int8")
    assert str(tmp_path) in caught.value.message


def test_an_unquantised_folder_is_quantised_from_its_own_dtype(tmp_path: Path) -> None:
    """bf16 weights become 8-bit codes of their values."""
    theirs = wide().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    found = read_all(tmp_path, "auto")["model.layers.2.down"]
    assert isinstance(found, Quantized)
    wanted = theirs.model.layers[2].mlp.down_proj.weight.detach().float().numpy()
    assert np.array_equal(found.codes, quantize_q8(wanted).codes)
