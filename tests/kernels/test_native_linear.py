"""Linear layers of the native library against float64 sums of the same codes, for every format and instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_actors.kernels.cpu.engine import PackedWeight
from sgl_actors.kernels.cpu.native import BLOCK, ISAS, Format, Pool, library
from sgl_actors.kernels.cpu.packing import (
    ALIGNMENT,
    REGION,
    Arena,
    linear,
    pack_codes,
    pack_values,
    unpack_rows,
)

pytestmark = pytest.mark.skipif(library() is None, reason="the native library is not built")

Array = np.ndarray[Any, np.dtype[Any]]
QUANTISED = (Format.Q8, Format.Q4, Format.Q4W)
WIDE = 26 * BLOCK
"""More blocks than are unpacked at a time."""
TALL = 131
"""More rows than share an unpacked panel."""


def isas() -> list[int]:
    """The instruction sets that this machine runs."""
    native = library()
    return list(range(native.sgl_best_isa() + 1)) if native else [0]


@pytest.fixture(params=isas(), ids=lambda isa: ISAS[isa])
def isa(request: pytest.FixtureRequest) -> int:
    """Each instruction set in turn."""
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Two threads."""
    return Pool(2)


@dataclass
class Weight:
    """A packed weight, its exact value [out, in] in float64, and rounded after each operation in fp32."""

    packed: PackedWeight
    value: Array
    bias: Array
    rounded: Array


def random_weight(kind: Format, out: int, width: int, seed: int, isa: int = -1) -> Weight:
    """Codes from all of the range, scales that fp16 holds (but for Q4W), every other output with a bias."""
    random = np.random.default_rng(seed)
    bias = (random.standard_normal(out) * (np.arange(out) % 2)).astype(np.float32)
    biases = torch.from_numpy(bias)
    if kind in (Format.F32, Format.BF16):
        values = torch.from_numpy(random.standard_normal((out, width)).astype(np.float32))
        values = values.to(torch.bfloat16 if kind is Format.BF16 else torch.float32)
        return Weight(
            pack_values(values, biases, isa=isa), values.double().numpy(), bias, values.float().numpy()
        )
    blocks = (out, width // BLOCK)
    signed = kind is Format.Q8
    codes = (
        random.integers(-127, 128, (out, width), np.int8)
        if signed
        else random.integers(0, 16, (out, width), np.uint8)
    )
    held: Callable[[Array], Array] = (
        (lambda values: values.astype(np.float32))
        if kind is Format.Q4W
        else (lambda values: values.astype(np.float16).astype(np.float32))
    )
    scale = held(random.uniform(0.001, 0.1, blocks))
    minimum = None if signed else held(random.uniform(-1, 0, blocks))
    grouped = codes.reshape(*blocks, BLOCK)
    value, rounded = grouped * scale.astype(np.float64)[..., None], grouped * scale[..., None]
    if minimum is not None:
        value, rounded = value + minimum[..., None], rounded + minimum[..., None]
    packed = pack_codes(kind, codes, scale, minimum, biases, isa=isa)
    return Weight(packed, value.reshape(out, width), bias, rounded.reshape(out, width))


OUTLIER = 2.5
"""Times the mean scale of its row from which on a block has a second code."""


def quantised(x: Array) -> Array:
    """What the kernels make of activations, in float64."""
    blocks = x.reshape(x.shape[0], -1, BLOCK)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    first = codes_of(blocks, scale) * scale.astype(np.float64)
    left = blocks - codes_of(blocks, scale).astype(np.float32) * scale
    finer = scale / np.float32(254)
    fine = scale > OUTLIER * scale.mean(axis=1, keepdims=True)
    second = np.where(fine, codes_of(left, finer) * finer.astype(np.float64), 0.0)
    return np.asarray((first + second).reshape(x.shape))


def codes_of(blocks: Array, scale: Array) -> Array:
    """The nearest multiples of the scale; zeros without one."""
    return np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)).astype(np.float64)


def activations(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random, with blocks of zeros and very large and very small ones among them."""
    random = np.random.default_rng(seed)
    sizes = random.choice([0.0, 1e-30, 1.0, 1.0, 1.0, 1e4], (rows, width // BLOCK, 1))
    values = random.standard_normal((rows, width // BLOCK, BLOCK)) * sizes
    return torch.from_numpy(values.astype(np.float32).reshape(rows, width))


@pytest.mark.parametrize("kind", list(Format), ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("rows", "width", "out"),
    [(1, 32, 1), (1, 576, 100), (3, 96, 40), (4, 64, 16), (5, 64, 24), (17, WIDE, 33), (TALL, 64, 50)],
)
def test_the_product_is_the_float64_sum_of_the_same_codes(
    pool: Pool, isa: int, kind: Format, rows: int, width: int, out: int
) -> None:
    """Within fp32 rounding of the terms, for outputs, inputs and rows that fill a tile and those that do not."""
    weight = random_weight(kind, out, width, seed=rows + width, isa=isa)
    x = activations(rows, width, seed=1)
    entered = quantised(x.numpy()) if kind in QUANTISED else x.double().numpy()
    expected = entered @ weight.value.T + weight.bias
    room = np.abs(x.double().numpy()) @ np.abs(weight.value).T + np.abs(weight.bias)
    got = linear(pool, weight.packed, x, isa=isa).double().numpy()
    assert (np.abs(got - expected) <= 3e-6 * room + 1e-30).all()


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 23])
@pytest.mark.parametrize("sign", [-1, 1, 0])
def test_the_integer_sums_are_exact_up_to_the_greatest_codes(
    pool: Pool, isa: int, kind: Format, rows: int, sign: int
) -> None:
    """With scales of one the output is the integer sum itself; nothing saturates when all codes are extreme (sign 0: random ones)."""
    width, out = 96, 20
    random = np.random.default_rng(rows)
    most = 127 if kind is Format.Q8 else 15
    codes = np.full((out, width), most)
    codes[1::2] *= -1 if kind is Format.Q8 else 0
    x = np.full((rows, width), 127 * sign)
    if sign == 0:
        codes = random.integers(-most if kind is Format.Q8 else 0, most + 1, codes.shape)
        x = random.integers(-127, 128, x.shape)
        x[:, ::BLOCK] = 127
    ones = np.ones((out, width // BLOCK), np.float32)
    weight = pack_codes(
        kind,
        codes.astype(np.int8 if kind is Format.Q8 else np.uint8),
        ones,
        None if kind is Format.Q8 else -ones,
        isa=isa,
    )
    got = linear(pool, weight, torch.from_numpy(x.astype(np.float32)), isa=isa)
    expected = x @ (codes if kind is Format.Q8 else codes - 1).T
    assert (got.numpy() == expected).all()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(Format)),
    isa=st.sampled_from(isas()),
    rows=st.integers(1, 40),
    blocks=st.sampled_from([1, 2, 18, 26, 49]),
    out=st.integers(1, 70),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_a_row_is_the_same_alone_and_in_any_batch(
    kind: Format, isa: int, rows: int, blocks: int, out: int, threads: int, seed: int, data: st.DataObject
) -> None:
    """Bit for bit, whatever comes with it and however many threads split the work."""
    weight = random_weight(kind, out, blocks * BLOCK, seed, isa).packed
    x = activations(rows, blocks * BLOCK, seed)
    whole = linear(Pool(threads), weight, x, isa=isa)
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    part = linear(Pool(1), weight, x[first:last].clone(), isa=isa)
    alone = linear(Pool(2), weight, x[first : first + 1].clone(), isa=isa)
    assert torch.equal(part, whole[first:last])
    assert torch.equal(alone, whole[first : first + 1])


@pytest.mark.parametrize("kind", list(Format), ids=lambda kind: kind.name)
def test_an_output_is_the_same_in_a_larger_weight(pool: Pool, isa: int, kind: Format) -> None:
    """Bit for bit, whatever other outputs stand beside it in a panel or a tile."""
    values = np.random.default_rng(3).standard_normal((300, 64)).astype(np.float32)
    codes = (np.abs(values) * 5).astype(np.uint8) % 16
    ones = np.full((300, 2), 0.5, np.float32)

    def packed(begin: int, end: int) -> PackedWeight:
        if kind in QUANTISED:
            kept = codes.astype(np.int8) if kind is Format.Q8 else codes
            minimum = None if kind is Format.Q8 else ones[begin:end]
            return pack_codes(kind, kept[begin:end], ones[begin:end], minimum, isa=isa)
        some = torch.from_numpy(values[begin:end])
        return pack_values(some.bfloat16() if kind is Format.BF16 else some, isa=isa)

    x = activations(9, 64, seed=4)
    assert torch.equal(
        linear(pool, packed(0, 300), x, isa=isa)[:, 7:31], linear(pool, packed(7, 31), x, isa=isa)
    )


@pytest.mark.skipif(len(isas()) < 2, reason="one instruction set")
@pytest.mark.parametrize("kind", list(Format), ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 16])
def test_instruction_sets_agree(pool: Pool, kind: Format, rows: int) -> None:
    """They pack alike; results differ from the portable ones by fp32 rounding alone, since the integer sums are the same; the others' are equal."""
    x = activations(rows, 576, seed=6)
    plain, *others = (random_weight(kind, 40, 576, seed=5, isa=isa) for isa in isas())
    expected = linear(pool, plain.packed, x, isa=0).numpy()
    room = np.abs(x.numpy()) @ np.abs(plain.value).T + 1
    got = [linear(pool, other.packed, x, isa=isa).numpy() for isa, other in enumerate(others, start=1)]
    assert (np.abs(got[0] - expected) <= 3e-6 * room).all()
    assert all((one == got[0]).all() for one in got)
    assert all(torch.equal(plain.packed.data, other.packed.data) for other in others)


@pytest.mark.parametrize("kind", list(Format), ids=lambda kind: kind.name)
def test_rows_come_out_as_they_went_in(isa: int, kind: Format) -> None:
    """Rows in any order and twice: the fp32 product of code and scale, plus the minimum, bit for bit."""
    weight = random_weight(kind, 37, 96, seed=7, isa=isa)
    rows = torch.tensor([36, 0, 5, 5, 16])
    assert (unpack_rows(weight.packed, rows, isa=isa).numpy() == weight.rounded[rows.numpy()]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [2, 9])
def test_a_value_that_is_not_finite_stays_in_its_row(
    pool: Pool, isa: int, kind: Format, bad: float, rows: int
) -> None:
    """Its row is NaN, which a sampler can tell; the others are untouched."""
    weight = random_weight(kind, 20, 64, seed=8, isa=isa).packed
    x = activations(rows, 64, seed=9)
    clean = linear(pool, weight, x, isa=isa)
    x[1, 40] = bad
    got = linear(pool, weight, x, isa=isa)
    assert got[1].isnan().all()
    keep = [row for row in range(rows) if row != 1]
    assert torch.equal(got[keep], clean[keep])


CODES = np.zeros((4, 64), np.uint8)
SCALE = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: pack_values(torch.zeros(4, 4, dtype=torch.float16)), "float16"),
        (lambda: pack_values(torch.zeros(4)), r"\[out, in\]"),
        (lambda: pack_values(torch.zeros(0, 4)), r"\[out, in\]"),
        (lambda: pack_values(torch.zeros(4, 8).T), "contiguous"),
        (lambda: pack_values(torch.zeros(4, 8), torch.zeros(5)), "bias"),
        (lambda: pack_codes(Format.F32, CODES, SCALE, SCALE), "pack_values"),
        (lambda: pack_codes(Format.Q4, CODES[:, :48].copy(), SCALE, SCALE), "multiple of 32"),
        (lambda: pack_codes(Format.Q4, CODES.astype(np.int8), SCALE, SCALE), "uint8"),
        (lambda: pack_codes(Format.Q4, CODES + 16, SCALE, SCALE), "code of 16"),
        (lambda: pack_codes(Format.Q4, CODES, SCALE), "needs a minimum"),
        (lambda: pack_codes(Format.Q8, CODES.astype(np.int8), SCALE, SCALE), "no minimum"),
        (lambda: pack_codes(Format.Q4, CODES, SCALE[:, :1], SCALE), "scale"),
        (lambda: pack_codes(Format.Q4, CODES, SCALE / 3, SCALE), "Q4W"),
        (lambda: pack_codes(Format.Q4, CODES, SCALE, SCALE * np.float32(1e6)), "minimum"),
        (lambda: pack_codes(Format.Q4W, CODES, SCALE * np.float32(np.nan), SCALE), "not finite"),
    ],
)
def test_what_cannot_be_packed_is_named(call: Callable[[], PackedWeight], names: str) -> None:
    """A `ValueError` says which part is wrong."""
    with pytest.raises(ValueError, match=names):
        call()


def test_inputs_are_checked(pool: Pool) -> None:
    """Activations of another width or dtype and rows that are not there are refused, never read."""
    weight = random_weight(Format.Q4, 20, 64, seed=8).packed
    with pytest.raises(ValueError, match=r"x \(2, 32\)"):
        linear(pool, weight, torch.zeros(2, 32))
    with pytest.raises(ValueError, match="float32"):
        linear(pool, weight, torch.zeros(2, 64, dtype=torch.float64))
    for row in (-1, 20):
        with pytest.raises(ValueError, match="rows"):
            unpack_rows(weight, torch.tensor([row]))


def test_memory_of_weights_is_aligned_and_not_shared() -> None:
    """Pieces of any size, one larger than a region among them, start aligned and keep what was written when the arena is gone."""
    arena = Arena()
    pieces = [arena.empty(size) for size in (1, 63, 65, REGION + 1, 1000, 64)]
    for number, piece in enumerate(pieces):
        piece[:1000] = number
        piece[-1] = number
    del arena
    for number, piece in enumerate(pieces):
        assert piece.data_ptr() % ALIGNMENT == 0
        assert (piece[:1000] == number).all()
        assert piece[-1] == number


@pytest.mark.parametrize("kind", [Format.F32, *QUANTISED])
def test_no_rows_are_no_work(pool: Pool, isa: int, kind: Format) -> None:
    """A batch of nothing gives nothing."""
    weight = random_weight(kind, 17, BLOCK, 0).packed
    assert linear(pool, weight, torch.empty(0, BLOCK), isa=isa).shape == (0, 17)
