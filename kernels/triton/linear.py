"""Products with quantised weights on a GPU; formats and semantics in `sgl_actors.kernels.quantized`.

Three kernels. `_tile8_kernel`: int8 × int8 or fp8 × fp8 on tensor cores. `_tile4_kernel`: 4-bit weights, turned into the activations' type in
registers. `_gemv_kernel`: one row, any format, without tensor cores: there the bytes of the weight are all that counts.

The tiles compute W x^T: channels are the rows of a tensor core's product, of which a Hopper instruction takes no fewer than 64, and the few rows of
a decode its columns; and what was dequantised in registers need not go through shared memory, as a left operand may stay there.

fp8 is native from sm_89 on. Elsewhere (sm_80, and CDNA3, whose fp8 has another bias) its codes are turned into fp16, exactly, and multiplied so.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from sgl_actors.kernels.quantized import Format, QuantizedWeight
from sgl_actors.kernels.triton import tuning
from sgl_actors.kernels.triton.ahead_of_time import AheadOfTime
from sgl_actors.kernels.triton.product import product

INT8 = tl.constexpr(int(Format.INT8))
FP8 = tl.constexpr(int(Format.FP8))
INT4 = tl.constexpr(int(Format.INT4))
AMD_STAGES = 2
"""CDNA3 has 64 KiB of shared memory, room for no more."""
QUANTIZED = 4096
"""Elements that a program of `_quantize_kernel` holds at least."""


def multiply(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """[rows, in] to [rows, out] of `x`'s dtype; sums in fp32 (int32 within a group of int8).

    Raises:
        ValueError: the widths do not fit, or `x`'s rows are not contiguous.
    """
    out_width, width = weight.shape
    if x.ndim != 2 or x.shape[1] != width or not x.is_contiguous():
        raise ValueError(
            f"multiply: x is {list(x.shape)} with strides {x.stride()}, expected [rows, {width}], contiguous"
        )
    out = torch.empty((len(x), out_width), dtype=x.dtype, device=x.device)
    if len(x):
        launch(x, weight, out, choose_tile(weight, len(x), x.device))
    return out


def launch(x: torch.Tensor, weight: QuantizedWeight, out: torch.Tensor, tile: tuning.Tile) -> None:
    """Run the product with that tile; `BLOCK_M` of 1 stands for the matrix-vector kernel."""
    if weight.format is Format.INT4:
        inputs, scale = x, weight.scale
    else:
        inputs, scale = quantize_rows(x, weight.format, weight.group)
    if tile["BLOCK_M"] == 1:
        _launch_gemv(inputs, scale, weight, out, tile)
        return
    grid = (triton.cdiv(len(x), tile["BLOCK_M"]) * triton.cdiv(weight.shape[0], tile["BLOCK_N"]),)
    sizes = (len(x), *weight.shape)
    if weight.format is Format.INT4:
        _tile4_kernel[grid](
            x,
            weight.codes,
            weight.scale,
            weight.scale if weight.minimum is None else weight.minimum,
            out,
            *sizes,
            MINIMUM=weight.minimum is not None,
            enable_fp_fusion=True,
            **tile,
        )
        return
    per_channel = weight.group == weight.shape[1]
    _tile8_kernel[grid](
        inputs,
        scale,
        _bytes(weight),
        weight.scale,
        out,
        *sizes,
        FP8_CODES=weight.format is Format.FP8,
        NATIVE_FP8=has_native_fp8(x.device),
        PER_CHANNEL=per_channel,
        enable_fp_fusion=True,
        **(tile if per_channel else {**tile, "BLOCK_K": weight.group}),
    )


def _launch_gemv(
    x: torch.Tensor, scale: torch.Tensor, weight: QuantizedWeight, out: torch.Tensor, tile: tuning.Tile
) -> None:
    _gemv_kernel[(triton.cdiv(weight.shape[0], tile["BLOCK_N"]), len(x))](
        x,
        scale,
        _bytes(weight),
        weight.scale,
        weight.scale if weight.minimum is None else weight.minimum,
        out,
        *weight.shape,
        FORMAT=int(weight.format),
        MINIMUM=weight.minimum is not None,
        GROUP=weight.group,
        enable_fp_fusion=True,
        **{name: value for name, value in tile.items() if name != "BLOCK_M"},
    )


def _bytes(weight: QuantizedWeight) -> torch.Tensor:
    """Codes as integers: not every device that multiplies them knows float8."""
    return weight.codes.view(torch.uint8) if weight.format is Format.FP8 else weight.codes


def choose_tile(weight: QuantizedWeight, rows: int, device: torch.device) -> tuning.Tile:
    """The table's tile for this shape and device, or a guess."""
    return _find_tile(weight.format, weight.group, weight.shape, tuning.round_rows(rows), device)


@lru_cache(maxsize=4096)
def _find_tile(
    wanted: Format, group: int, shape: tuple[int, int], rows: int, device: torch.device
) -> tuning.Tile:
    guess = guess_tile(wanted, rows, grouped=group < shape[1])
    if torch.version.hip is not None and "num_stages" in guess:
        guess["num_stages"] = AMD_STAGES
    return tuning.choose(kernel_name(wanted, group, shape[1]), tuning.bucket(rows, *shape), guess, device)


def kernel_name(wanted: Format, group: int, width: int) -> str:
    """What tiles of such a weight's products are filed under, e.g. `linear int8 group 128`; `group in` where a channel has one scale."""
    return f"linear {wanted.name.lower()} group {group if group < width else 'in'}"


def guess_tile(wanted: Format, rows: int, *, grouped: bool) -> tuning.Tile:
    """A tile by the number of rows alone: few rows want many programs, many rows a large tile. Not tuned on hardware.

    Where each group has its scale, a second accumulator takes the registers that a larger tile would need.
    """
    if rows == 1:
        return {"BLOCK_M": 1, "BLOCK_N": 8, "BLOCK_K": 512, "num_warps": 4}
    depth = 128 if wanted is not Format.INT4 else 64
    if rows <= 16:
        return {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}
    if rows <= 64:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": depth, "num_warps": 4, "num_stages": 3}
    most = 64 if grouped and wanted is not Format.INT4 else 128
    return {"BLOCK_M": most, "BLOCK_N": 128, "BLOCK_K": depth, "num_warps": 8, "num_stages": 3}


def has_native_fp8(device: torch.device) -> bool:
    """Whether the device multiplies float8_e4m3fn: NVIDIA from compute capability 8.9 on."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 9)
    )


def quantize_rows(x: torch.Tensor, wanted: Format, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `sgl_actors.kernels.quantized.quantize_rows`; FP8 codes come as uint8."""
    rows, width = x.shape
    codes = torch.empty(x.shape, dtype=torch.int8 if wanted is Format.INT8 else torch.uint8, device=x.device)
    groups = rows * (width // group)
    scale = torch.empty((rows, width // group), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(group)
    tile = max(1, min(QUANTIZED // block, triton.next_power_of_2(groups)))
    _quantize_kernel[(triton.cdiv(groups, tile),)](
        x,
        codes,
        scale,
        groups,
        FP8_CODES=wanted is Format.FP8,
        GROUP=group,
        GROUPS=tile,
        BLOCK=block,
        num_warps=max(4, min(16, tile * block // 512)),
        enable_fp_fusion=True,
    )
    return codes, scale


@triton.jit
def _from_fp8(codes: tl.tensor) -> tl.tensor:
    """The values of float8_e4m3fn bit patterns (uint8) in fp16, exactly: the exponent's bias is 7 there and 15 here."""
    wide = codes.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def _to_fp8(values: tl.tensor) -> tl.tensor:
    """Bit patterns of float8_e4m3fn nearest to fp32 values of at most 448 in magnitude, ties to even.

    A normal number keeps three bits of its mantissa; a smaller one is rounded by adding 2^14, whose last place is 2^-9, the step of those numbers.
    """
    magnitude = tl.abs(values)
    bits = magnitude.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (127 - 7) * 8
    small = (magnitude + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0.015625, small, normal)
    return (code | tl.where(values < 0, 0x80, 0)).to(tl.uint8)


@triton.jit
def _quantize_kernel(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    groups: tl.tensor,
    FP8_CODES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program takes GROUPS groups, which lie one after the other."""
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    element = tl.arange(0, BLOCK)
    here = (group < groups)[:, None] & (element < GROUP)[None, :]
    at = group.to(tl.int64)[:, None] * GROUP + element[None, :]
    x = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
    most: tl.constexpr = 448.0 if FP8_CODES else 127.0
    scale = tl.max(tl.abs(x), axis=1) / most
    scaled = x * tl.where(scale > 0, 1.0 / tl.where(scale > 0, scale, 1.0), 0.0)[:, None]
    scaled = tl.minimum(tl.maximum(scaled, -most), most)
    if not FP8_CODES:
        tl.store(codes_ptr + at, tl.floor(scaled + 0.5).to(tl.int8), mask=here)
    else:
        tl.store(codes_ptr + at, _to_fp8(scaled), mask=here)
    tl.store(scale_ptr + group, scale, mask=group < groups)


@triton.jit
def _tile8_kernel(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    out_width: tl.tensor,
    width: tl.tensor,
    FP8_CODES: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A tile of BLOCK_N channels and BLOCK_M rows. Unless PER_CHANNEL, a step takes one group: BLOCK_K is its size."""
    tiles = tl.cdiv(rows, BLOCK_M)
    row = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    element = tl.arange(0, BLOCK_K)
    x_at = x_ptr + row.to(tl.int64)[None, :] * width + element[:, None]
    w_at = codes_ptr + channel.to(tl.int64)[:, None] * width + element[None, :]
    groups = tl.cdiv(width, BLOCK_K)
    if PER_CHANNEL and not FP8_CODES:
        total = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    else:
        total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(groups):
        inside = element < width - step * BLOCK_K
        x = tl.load(x_at, mask=(row < rows)[None, :] & inside[:, None], other=0)
        w = tl.load(w_at, mask=(channel < out_width)[:, None] & inside[None, :], other=0)
        if not FP8_CODES:
            part = tl.dot(w, x, out_dtype=tl.int32)
        elif NATIVE_FP8:
            part = tl.dot(w.to(tl.float8e4nv, bitcast=True), x.to(tl.float8e4nv, bitcast=True))
        else:
            part = tl.dot(_from_fp8(w), _from_fp8(x))
        if PER_CHANNEL:
            total += part
        else:
            x_scale = tl.load(x_scale_ptr + row * groups + step, mask=row < rows, other=0.0)
            scale = tl.load(scale_ptr + channel * groups + step, mask=channel < out_width, other=0.0)
            total += part.to(tl.float32) * scale[:, None] * x_scale[None, :]
        x_at += BLOCK_K
        w_at += BLOCK_K
    result = total.to(tl.float32)
    if PER_CHANNEL:
        x_scale = tl.load(x_scale_ptr + row, mask=row < rows, other=0.0)
        scale = tl.load(scale_ptr + channel, mask=channel < out_width, other=0.0)
        result = result * scale[:, None] * x_scale[None, :]
    out_at = out_ptr + row.to(tl.int64)[None, :] * out_width + channel[:, None]
    here = (row < rows)[None, :] & (channel < out_width)[:, None]
    tl.store(out_at, result.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def _tile4_kernel(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    minimum_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    out_width: tl.tensor,
    width: tl.tensor,
    MINIMUM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A tile of BLOCK_N channels and BLOCK_M rows, BLOCK_K weights of each channel a step.

    Low and high halves of the bytes make two products: byte j of a step has the codes of elements 32 (j / 16) + j % 16 and 16 on from it.
    """
    tiles = tl.cdiv(rows, BLOCK_M)
    row = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    byte = tl.arange(0, BLOCK_K // 2)
    element = byte // 16 * 32 + byte % 16
    low_at = x_ptr + row.to(tl.int64)[None, :] * width + element[:, None]
    code_at = codes_ptr + channel.to(tl.int64)[:, None] * (width // 2) + byte[None, :]
    block_at = channel.to(tl.int64)[:, None] * (width // 32) + (byte // 16)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(tl.cdiv(width, BLOCK_K)):
        inside = byte < width // 2 - step * (BLOCK_K // 2)
        of_x = (row < rows)[None, :] & inside[:, None]
        of_w = (channel < out_width)[:, None] & inside[None, :]
        low = tl.load(low_at, mask=of_x, other=0.0)
        high = tl.load(low_at + 16, mask=of_x, other=0.0)
        codes = tl.load(code_at, mask=of_w, other=0)
        scale = tl.load(scale_ptr + block_at, mask=of_w, other=0.0).to(tl.float32)
        first = (codes & 15).to(tl.float32) * scale
        second = (codes >> 4).to(tl.float32) * scale
        if MINIMUM:
            minimum = tl.load(minimum_ptr + block_at, mask=of_w, other=0.0).to(tl.float32)
            first += minimum
            second += minimum
        total = product(first.to(low.dtype), low, total)
        total = product(second.to(low.dtype), high, total)
        low_at += BLOCK_K
        code_at += BLOCK_K // 2
        block_at += BLOCK_K // 32
    out_at = out_ptr + row.to(tl.int64)[None, :] * out_width + channel[:, None]
    here = (row < rows)[None, :] & (channel < out_width)[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def _gemv_kernel(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    minimum_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out_width: tl.tensor,
    width: tl.tensor,
    FORMAT: tl.constexpr,
    MINIMUM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """BLOCK_N channels of one row; `x` holds codes and `x_scale` their scales, but for INT4."""
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1).to(tl.int64)
    of_channel = (channel < out_width)[:, None]
    x_ptr += row * width
    total = tl.zeros([BLOCK_N], tl.float32)
    groups = width // GROUP
    if FORMAT == INT4:
        byte = tl.arange(0, BLOCK_K // 2)
        element = byte // 16 * 32 + byte % 16
        for start in range(0, width, BLOCK_K):
            inside = byte < (width - start) // 2
            low = tl.load(x_ptr + start + element, mask=inside, other=0.0).to(tl.float32)
            high = tl.load(x_ptr + start + element + 16, mask=inside, other=0.0).to(tl.float32)
            of_w = of_channel & inside[None, :]
            code_at = codes_ptr + channel.to(tl.int64)[:, None] * (width // 2) + (start // 2 + byte)[None, :]
            block_at = channel.to(tl.int64)[:, None] * groups + (start // 32 + byte // 16)[None, :]
            codes = tl.load(code_at, mask=of_w, other=0)
            scale = tl.load(scale_ptr + block_at, mask=of_w, other=0.0).to(tl.float32)
            sums = (
                (codes & 15).to(tl.float32) * low[None, :] + (codes >> 4).to(tl.float32) * high[None, :]
            ) * scale
            if MINIMUM:
                minimum = tl.load(minimum_ptr + block_at, mask=of_w, other=0.0).to(tl.float32)
                sums += minimum * (low + high)[None, :]
            total += tl.sum(sums, axis=1)
    else:
        element = tl.arange(0, BLOCK_K)
        for start in range(0, width, BLOCK_K):
            inside = element < width - start
            of_w = of_channel & inside[None, :]
            x = tl.load(x_ptr + start + element, mask=inside, other=0)
            code_at = codes_ptr + channel.to(tl.int64)[:, None] * width + (start + element)[None, :]
            codes = tl.load(code_at, mask=of_w, other=0)
            if FORMAT == FP8:
                products = _from_fp8(codes).to(tl.float32) * _from_fp8(x).to(tl.float32)[None, :]
            else:
                products = codes.to(tl.float32) * x.to(tl.float32)[None, :]
            group = (start + element) // GROUP
            x_scale = tl.load(x_scale_ptr + row * groups + group, mask=inside, other=0.0)
            scale_at = scale_ptr + channel.to(tl.int64)[:, None] * groups + group[None, :]
            products *= tl.load(scale_at, mask=of_w, other=0.0) * x_scale[None, :]
            total += tl.sum(products, axis=1)
    tl.store(
        out_ptr + row * out_width + channel, total.to(out_ptr.dtype.element_ty), mask=channel < out_width
    )


_SIZES = {"rows": "i32", "out_width": "i32:16", "width": "i32:16"}
_NO_FP8 = {"NATIVE_FP8": False}


def _entry_tile8(wanted: Format, group: int | None, rows: int) -> AheadOfTime:
    codes = "*i8:16" if wanted is Format.INT8 else "*u8:16"
    tile = guess_tile(wanted, rows, grouped=group is not None)
    constants = {
        "FP8_CODES": wanted is Format.FP8,
        "NATIVE_FP8": True,
        "PER_CHANNEL": group is None,
        "BLOCK_M": tile["BLOCK_M"],
        "BLOCK_N": tile["BLOCK_N"],
        "BLOCK_K": group or tile["BLOCK_K"],
    }
    return AheadOfTime(
        f"linear_{wanted.name.lower()}_{f'group{group}' if group else 'channel'}_m{rows}",
        _tile8_kernel,
        {
            "x_ptr": codes,
            "x_scale_ptr": "*fp32:16",
            "codes_ptr": codes,
            "scale_ptr": "*fp32:16",
            "out_ptr": "*bf16:16",
            **_SIZES,
        },
        constants,
        hot=True,
        options={"num_warps": tile["num_warps"], "num_stages": tile["num_stages"]},
        overrides={"sm_80": _NO_FP8, "gfx942": {**_NO_FP8, "num_stages": AMD_STAGES}},
    )


def _entry_tile4(rows: int) -> AheadOfTime:
    tile = guess_tile(Format.INT4, rows, grouped=True)
    return AheadOfTime(
        f"linear_int4_m{rows}",
        _tile4_kernel,
        {
            "x_ptr": "*bf16:16",
            "codes_ptr": "*u8:16",
            "scale_ptr": "*fp16:16",
            "minimum_ptr": "*fp16:16",
            "out_ptr": "*bf16:16",
            **_SIZES,
        },
        {"MINIMUM": True, **{name: tile[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")}},
        hot=True,
        options={"num_warps": tile["num_warps"], "num_stages": tile["num_stages"]},
        overrides={"gfx942": {"num_stages": AMD_STAGES}},
    )


def _entry_gemv(wanted: Format) -> AheadOfTime:
    x, codes, scale = {
        Format.INT8: ("*i8:16", "*i8:16", "*fp32:16"),
        Format.FP8: ("*u8:16", "*u8:16", "*fp32:16"),
        Format.INT4: ("*bf16:16", "*u8:16", "*fp16:16"),
    }[wanted]
    tile = guess_tile(wanted, 1, grouped=True)
    return AheadOfTime(
        f"gemv_{wanted.name.lower()}",
        _gemv_kernel,
        {
            "x_ptr": x,
            "x_scale_ptr": scale,
            "codes_ptr": codes,
            "scale_ptr": scale,
            "minimum_ptr": scale,
            "out_ptr": "*bf16:16",
            "out_width": "i32:16",
            "width": "i32:16",
        },
        {
            "FORMAT": int(wanted),
            "MINIMUM": wanted is Format.INT4,
            "GROUP": 32 if wanted is Format.INT4 else 128,
            "BLOCK_N": tile["BLOCK_N"],
            "BLOCK_K": tile["BLOCK_K"],
        },
        hot=True,
        options={"num_warps": tile["num_warps"]},
    )


def _entry_quantize(wanted: Format) -> AheadOfTime:
    codes = "*i8:16" if wanted is Format.INT8 else "*u8:16"
    return AheadOfTime(
        f"quantize_{wanted.name.lower()}_group128",
        _quantize_kernel,
        {"x_ptr": "*bf16:16", "codes_ptr": codes, "scale_ptr": "*fp32:16", "groups": "i32:16"},
        {"FP8_CODES": wanted is Format.FP8, "GROUP": 128, "GROUPS": 32, "BLOCK": 128},
        hot=True,
        options={"num_warps": 8},
    )


AHEAD_OF_TIME = [
    _entry_tile8(Format.INT8, None, 16),
    _entry_tile8(Format.INT8, None, 512),
    _entry_tile8(Format.INT8, 128, 64),
    _entry_tile8(Format.INT8, 128, 512),
    _entry_tile8(Format.INT8, 32, 512),
    _entry_tile8(Format.FP8, None, 512),
    _entry_tile8(Format.FP8, 128, 16),
    _entry_tile8(Format.FP8, 128, 512),
    *(_entry_tile4(rows) for rows in (16, 512)),
    *(_entry_gemv(wanted) for wanted in Format),
    *(_entry_quantize(wanted) for wanted in (Format.INT8, Format.FP8)),
]
