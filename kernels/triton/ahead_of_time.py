"""Compile every kernel for GPUs that are not here, and read what it costs from the compiled object.

A module with kernels exports `AHEAD_OF_TIME`, a list of `AheadOfTime`: each a kernel with the types, constants and launch
options it has in use. `all_kernels` collects them, `compile_kernel` compiles one for one target.

    python -m sgl_actors.kernels.triton.ahead_of_time [NAME…]

prints a table in Markdown. Resources come from the object itself and need no driver: registers and local memory of a cubin
stand in its ELF sections (layout as in `cuobjdump -elf`), those of an AMD object in its metadata note. A compiler puts a register
that has no room into local memory (the stack); a kernel with no local memory thus spills nothing.
"""

from __future__ import annotations

import importlib
import re
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

MODULES = (
    "activation",
    "attention_cascade",
    "attention_decode",
    "attention_prefill",
    "linear",
    "norm",
    "pages",
    "rotary",
    "sampling",
)
"""Modules of this package that export `AHEAD_OF_TIME`."""

OPTIONS = frozenset(
    {"num_warps", "num_stages", "num_ctas", "waves_per_eu", "matrix_instr_nonkdim", "maxnreg"}
)
"""Names that are launch options, not constants of a kernel."""


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
        name: as compilers call it.
        device: one that has it.
        shared_limit: bytes of shared memory (LDS) that one block may have.
        register_limit: registers per thread.
    """

    name: str
    device: str
    gpu: GPUTarget
    shared_limit: int
    register_limit: int


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "A100", GPUTarget("cuda", 80, 32), 163 * 1024, 255),
        Target("sm_90", "H100", GPUTarget("cuda", 90, 32), 227 * 1024, 255),
        Target("sm_100", "B200", GPUTarget("cuda", 100, 32), 227 * 1024, 255),
        Target("gfx942", "MI300X", GPUTarget("hip", "gfx942", 64), 64 * 1024, 512),
    )
}
"""By name. Limits: CUDA C++ programming guide, table of technical specifications; AMD CDNA3 instruction set, §3."""


@dataclass(frozen=True)
class AheadOfTime:
    """One kernel as it is launched.

    Attributes:
        name: unique over all modules: the kernel and what is special, e.g. `decode_bf16_d128`.
        kernel: the `triton.jit` function.
        signature: type of every parameter that is no constant, in order: `*bf16`, `*fp32`, `*i32`, `i32`, `fp32`, …; `:16` behind it says
            that the value is a multiple of 16 (an aligned pointer, a stride), as a launch finds out by itself.
        constants: value of every `tl.constexpr` parameter; any parameter may be fixed so, a pointer by None.
        hot: runs in every decode or prefill step, so it must not spill.
        options: launch options, as in `OPTIONS`.
        overrides: by target name, constants and options that are different there.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    hot: bool
    options: Mapping[str, int] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What one thread, or one block, of a compiled kernel takes.

    Attributes:
        registers: per thread; on AMD vector and accumulation registers together.
        spilled: bytes of local memory per thread; 0 if and only if every register had room.
        shared: bytes per block.
        threads: per block.
        tensor_memory: columns of tensor memory, on Blackwell.
        seconds: of compiling.
    """

    registers: int
    spilled: int
    shared: int
    threads: int
    tensor_memory: int
    seconds: float


def all_kernels() -> list[AheadOfTime]:
    """What all modules export, in order.

    Raises:
        RuntimeError: two entries have the same name.
    """
    found: dict[str, AheadOfTime] = {}
    for module in MODULES:
        entries: list[AheadOfTime] = importlib.import_module(
            f"sgl_actors.kernels.triton.{module}"
        ).AHEAD_OF_TIME
        for entry in entries:
            if entry.name in found:
                raise RuntimeError(
                    f"two kernels are named {entry.name!r}, the second one in {module}; names are unique"
                )
            found[entry.name] = entry
    return list(found.values())


def compile_kernel(entry: AheadOfTime, target: Target) -> Resources:
    """Compile for `target`; no device is needed. Triton caches what it compiled in its `TRITON_CACHE_DIR`.

    Raises:
        RuntimeError: kernels are interpreted in this process (`TRITON_INTERPRET`), so there is nothing to compile.
        triton.CompilationError: the kernel does not compile.
    """
    if not hasattr(entry.kernel, "cache_key"):
        raise RuntimeError(f"{entry.name} is interpreted: unset TRITON_INTERPRET to compile it")
    changed = entry.overrides.get(target.name, {})
    options = {**entry.options, **{name: value for name, value in changed.items() if name in OPTIONS}}
    constants = {**entry.constants, **{name: value for name, value in changed.items() if name not in OPTIONS}}
    started = time.perf_counter()
    compiled = triton.compile(
        _source(entry, constants), target=target.gpu, options={"enable_fp_fusion": True, **options}
    )
    seconds = time.perf_counter() - started
    metadata = compiled.metadata
    amd = target.gpu.backend == "hip"
    registers, spilled = read_amdgcn(compiled.asm["amdgcn"]) if amd else read_cubin(compiled.asm["cubin"])
    threads = metadata.num_warps * target.gpu.warp_size
    return Resources(
        registers, spilled, metadata.shared, threads, getattr(metadata, "tmem_size", 0) or 0, seconds
    )


def _source(entry: AheadOfTime, constants: Mapping[str, Any]) -> ASTSource:
    names = entry.kernel.arg_names
    signature, aligned = {}, {}
    for place, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in entry.signature:
            signature[name], _, multiple = entry.signature[name].partition(":")
            if multiple:
                aligned[(place,)] = [["tt.divisibility", int(multiple)]]
        else:
            raise RuntimeError(f"{entry.name}: parameter {name!r} has neither a type nor a value")
    unknown = (set(entry.signature) | set(constants)) - set(names)
    if unknown:
        raise RuntimeError(f"{entry.name}: the kernel has no parameter {', '.join(sorted(unknown))}")
    return ASTSource(fn=entry.kernel, signature=signature, constexprs=dict(constants), attrs=aligned)


REGISTERS, FRAME = 0x2F, 0x11
"""Attributes of `.nv.info`: a function's registers per thread, and the bytes of its stack frame."""


def read_cubin(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack of the largest function in a cubin.

    Both are attributes in the section `.nv.info`, each entry a format byte (4: a size and that many bytes follow), the attribute
    and 16 bits; the value is a function's number and its figure.

    Raises:
        RuntimeError: no such object, or it does not state them.
    """
    largest = dict.fromkeys((REGISTERS, FRAME), -1)
    for name, content in _sections(cubin):
        if name == ".nv.info":
            for attribute, value in _attributes(content):
                if attribute in largest:
                    largest[attribute] = max(largest[attribute], struct.unpack("<II", value)[1])
    if min(largest.values()) < 0:
        raise RuntimeError(
            "the cubin does not state its registers and stack: another layout than this reader knows"
        )
    return largest[REGISTERS], largest[FRAME]


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(content):
        form, attribute, size = struct.unpack_from("<BBH", content, place)
        place += 4
        if form == 4:
            yield attribute, content[place : place + size]
            place += size


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and contents of every section of a 64-bit little-endian ELF file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise RuntimeError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + size * index) for index in range(count)]
    names = elf[headers[names_at][4] :]
    for header in headers:
        name = names[header[0] : names.index(b"\0", header[0])].decode()
        yield name, elf[header[4] : header[4] + header[5]]


def read_amdgcn(assembly: str) -> tuple[int, int]:
    """Registers per thread and bytes of scratch memory of the kernel, from the metadata of AMD's code objects (version 5)."""

    def read(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the object's metadata states no {name}")
        return int(found[1])

    spilled = 4 * (read("vgpr_spill_count") + read("sgpr_spill_count"))
    return read("vgpr_count"), max(spilled, read("private_segment_fixed_size"))


def print_table(names: list[str]) -> None:
    """Compile all kernels, or those whose name holds one of `names`, for all targets; one line of a Markdown table each."""
    print("| kernel | target | registers | spilled B | shared KiB | threads |")  # noqa: T201
    print("|---|---|---:|---:|---:|---:|")  # noqa: T201
    for entry in all_kernels():
        if names and not any(name in entry.name for name in names):
            continue
        for target in TARGETS.values():
            used = compile_kernel(entry, target)
            cells = (
                entry.name,
                target.name,
                used.registers,
                used.spilled,
                f"{used.shared / 1024:.1f}",
                used.threads,
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)  # noqa: T201


if __name__ == "__main__":
    print_table(sys.argv[1:])
