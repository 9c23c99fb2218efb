"""Every kernel compiled for GPUs that are not here, and what it takes of them."""

from __future__ import annotations

import dataclasses

import pytest

from sgl_actors.kernels.triton.ahead_of_time import (
    TARGETS,
    Resources,
    all_kernels,
    compile_kernel,
    read_amdgcn,
    read_cubin,
)

KERNELS = {entry.name: entry for entry in all_kernels()}
FIRST = list({entry.kernel: entry.name for entry in reversed(KERNELS.values()) if entry.hot}.values())[::-1]
"""One entry of every hot kernel."""
QUICK = [(name, ("sm_90", "gfx942", "sm_80", "sm_100")[place % 4]) for place, name in enumerate(FIRST)]
FULL = [(name, target) for name in KERNELS for target in TARGETS]


def check(name: str, target: str) -> Resources:
    """What kernel `name` takes on `target`; it fits, and does not spill where it is hot."""
    limit, used = TARGETS[target], compile_kernel(KERNELS[name], TARGETS[target])
    assert 0 < used.registers <= limit.register_limit
    assert used.shared <= limit.shared_limit
    assert used.threads <= 1024
    if KERNELS[name].hot:
        assert used.spilled == 0
    return used


@pytest.mark.parametrize(("name", "target"), QUICK)
def test_hot_kernels_fit_and_spill_nothing(name: str, target: str) -> None:
    """Each hot kernel compiles for one target or another without a register spilled, within its shared memory."""
    check(name, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), FULL)
def test_every_kernel_compiles_for_every_target(name: str, target: str) -> None:
    """Each kernel in each of its forms compiles for all targets, fits, and spills nothing if it is hot."""
    check(name, target)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_spill_is_seen(target: str) -> None:
    """With too few registers to hold its tile a kernel's stack is not empty: the reader would notice."""
    entry = KERNELS["attention_decode_bf16_d64"]
    tight = dataclasses.replace(entry, options={**entry.options, "maxnreg": 32})
    used = compile_kernel(tight, TARGETS[target])
    assert used.registers == 32
    assert used.spilled > 0


def test_scratch_memory_of_an_amd_object_is_read() -> None:
    """Spilled registers of either file count, and so does scratch memory; an object that does not say is refused."""
    stated = (
        ".vgpr_count:  {}\n .vgpr_spill_count: {}\n .sgpr_spill_count: {}\n .private_segment_fixed_size: {}\n"
    )
    assert read_amdgcn(stated.format(96, 0, 0, 0)) == (96, 0)
    assert read_amdgcn(stated.format(96, 2, 1, 0)) == (96, 12)
    assert read_amdgcn(stated.format(96, 0, 0, 64)) == (96, 64)
    with pytest.raises(RuntimeError, match="vgpr_spill_count"):
        read_amdgcn(".vgpr_count: 96")


def test_what_is_no_cubin_is_refused() -> None:
    """Other bytes, or an ELF file without the attributes, raise instead of counting as no spill."""
    with pytest.raises(RuntimeError, match="ELF"):
        read_cubin(b"\0" * 64)
    header = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + (64).to_bytes(8, "little") + b"\0" * 10
    empty = header + (64).to_bytes(2, "little") + (1).to_bytes(2, "little") + b"\0\0" + b"\0" * 64
    with pytest.raises(RuntimeError, match="another layout"):
        read_cubin(empty)


def test_an_entry_has_to_fit_its_kernel() -> None:
    """A parameter without a type or value, or a name that the kernel does not have, is told before compiling."""
    entry = KERNELS["attention_decode_bf16_d64"]
    with pytest.raises(RuntimeError, match="'window' has neither"):
        compile_kernel(
            dataclasses.replace(
                entry, signature={name: of for name, of in entry.signature.items() if name != "window"}
            ),
            TARGETS["sm_80"],
        )
    with pytest.raises(RuntimeError, match="no parameter other"):
        compile_kernel(
            dataclasses.replace(entry, constants={**entry.constants, "other": 1}), TARGETS["sm_80"]
        )
