"""Options to device, dtype, context and pool."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.worker.device import (
    choose_compute,
    choose_context,
    choose_device,
    choose_dtype,
    choose_kv,
    count_pages,
)
from sgl_actors.actors.worker.messages import Options
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.errors import ConfigError
from sgl_actors.kernels.cpu import native
from tests.worker.harness import CPU, tiny_config


def test_auto_is_fp32_on_a_cpu_and_bf16_on_a_gpu() -> None:
    """Any other name stands for itself."""
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("float16", CPU) == torch.float16
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["tpu", "", "mps", "cuda:x"])
def test_an_unknown_device_is_refused(name: str) -> None:
    """The error lists what may stand there."""
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        choose_device(name)


def test_an_unknown_dtype_is_refused() -> None:
    """The error lists what may stand there."""
    with pytest.raises(ConfigError, match="'int3', expected auto, float32, bfloat16, float16"):
        choose_dtype("int3", CPU)


def test_the_context_is_the_checkpoints_or_less() -> None:
    """0 asks for all of it; more than it has is refused."""
    config = tiny_config(context=256)
    assert choose_context(0, config) == 256
    assert choose_context(100, config) == 100
    with pytest.raises(ConfigError, match="257 is more than the model's 256"):
        choose_context(257, config)


def test_the_native_kernels_take_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the library, on a CPU: every `compute`, and fp32 if that dtype is asked for; another dtype is torch's."""
    monkeypatch.setattr(native, "library", object)
    for compute in ("auto", "fp32", "int8", "int4"):
        assert choose_compute(Options(compute=compute, deterministic=True), CPU, tiny_config()) == compute
    assert choose_compute(Options(dtype="float32"), CPU, tiny_config()) == "fp32"
    assert choose_compute(Options(dtype="bfloat16"), CPU, tiny_config()) is None
    assert (choose_kv("auto"), choose_kv("float16")) == (torch.float32, torch.float16)


@pytest.mark.parametrize(
    "option", [{"compute": "int8"}, {"compute": "int4"}, {"kv": "float16"}, {"deterministic": True}]
)
@pytest.mark.parametrize(("device", "reason"), [("cpu", "not built"), ("cuda", "for CPUs alone")])
def test_what_only_the_native_kernels_do_is_refused_without_them(
    option: dict[str, object], device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was asked for is left out in silence; without any of it torch serves."""
    monkeypatch.setattr(native, "library", lambda: None)
    assert choose_compute(Options(), torch.device(device), tiny_config()) is None
    with pytest.raises(ConfigError, match=f"{next(iter(option))}.*{reason}"):
        choose_compute(Options(**option), torch.device(device), tiny_config())  # type: ignore[arg-type]


def test_heads_that_the_native_kernels_do_not_take_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head_dim of 100 runs as before; what only the native kernels do is refused for it."""
    monkeypatch.setattr(native, "library", object)
    odd = dataclasses.replace(tiny_config(), head_dim=100)
    assert choose_compute(Options(), CPU, odd) is None
    with pytest.raises(ConfigError, match="'int8' is for heads of a multiple of 8, not 100"):
        choose_compute(Options(compute="int8"), CPU, odd)


def test_contradictions_and_unknown_names_are_refused() -> None:
    """Exact weights in another type than fp32; a `compute` or `kv` that does not exist."""
    with pytest.raises(ConfigError, match="'fp32' and dtype 'bfloat16' exclude each other"):
        choose_compute(Options(compute="fp32", dtype="bfloat16"), CPU, tiny_config())
    with pytest.raises(ConfigError, match="'int3', expected auto, fp32, int8, int4"):
        choose_compute(Options(compute="int3"), CPU, tiny_config())
    with pytest.raises(ConfigError, match="'int8', expected auto, float32, float16"):
        choose_kv("int8")


def test_pages_fill_the_memory_or_are_given() -> None:
    """A page is page_size tokens of all layers; memory for less than one is refused."""
    config = tiny_config()
    token = 2 * 2 * 2 * 8 * 4
    assert count_pages(CacheOptions(page_size=4, memory=10 * 4 * token + 3), config, torch.float32) == 10
    assert count_pages(CacheOptions(page_size=4, memory=10 * 4 * token), config, torch.bfloat16) == 20
    assert count_pages(CacheOptions(page_size=4, memory=1, pages=7), config, torch.float32) == 7
    with pytest.raises(ConfigError, match="hold no page"):
        count_pages(CacheOptions(page_size=4, memory=4 * token - 1), config, torch.float32)
    with pytest.raises(ConfigError, match="page_size"):
        count_pages(CacheOptions(page_size=0), config, torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux claims memory ahead of its use")
def test_claimed_memory_keeps_its_contents_and_stops_when_told() -> None:
    """What was written stays; after the first refusal of `going` nothing more is claimed."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    pool = KvPool(
        layers=2, pages=1 << 18, page_size=1, kv_heads=2, head_dim=32, dtype=torch.float32, device=CPU
    )
    pool.layer(1)[5] = 1
    before = process.memory_info().rss
    asked = iter([True] * 8)
    pool.claim(lambda: next(asked, False))
    assert 8e6 < process.memory_info().rss - before < 40e6
    pool.claim(lambda: True)
    assert process.memory_info().rss - before > 200e6
    assert pool.layer(1)[5].sum() == 128


def test_a_large_pool_takes_no_memory_before_it_is_written() -> None:
    """A pool of 8 GiB costs less than 50 MB of resident memory until slots are used."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    before = process.memory_info().rss
    pool = KvPool(
        layers=4, pages=1 << 22, page_size=1, kv_heads=2, head_dim=32, dtype=torch.float32, device=CPU
    )
    pool.layer(3)[5] = 1
    assert process.memory_info().rss - before < 50e6
    assert pool.layer(3)[5].sum() == 128
