"""A runner's profile: what it says of steps, and that taking one changes no token."""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from sgl_actors.actors.worker.model.native_lm import NativeLM
from sgl_actors.actors.worker.profile import REST, NativeSource, Stopwatch, weights_of
from sgl_actors.actors.worker.threads import give_way
from sgl_actors.errors import ConfigError, Overloaded
from sgl_actors.kernels.cpu.engine import Engine
from tests.worker.harness import Driver, make_runner, tiny_config, tiny_model

PROMPTS = [[5, 9, 60], list(range(3, 40))]
MODEL = tiny_model()
LINEAR = ("qkv", "output", "gate_up", "down")


def test_laps_add_up_to_the_time_between_first_and_last() -> None:
    """Each lap goes to one part; nothing is noted before `start`."""
    times = iter([10.0, 11.0, 13.0, 13.5])
    watch = Stopwatch(lambda: next(times))
    watch.mark()
    watch.lap("before")
    watch.start(slices=True)
    watch.mark()
    for part in ("qkv", "attention", "qkv"):
        watch.lap(part)
    assert dict(watch.seconds) == {"qkv": 1.5, "attention": 2.0}
    assert watch.calls == {"qkv": 2, "attention": 1}
    assert [(one.part, one.began, one.seconds) for one in watch.slices or ()] == [
        ("qkv", 10.0, 1.0),
        ("attention", 11.0, 2.0),
        ("qkv", 13.0, 0.5),
    ]


@pytest.mark.parametrize("slices", [False, True])
def test_a_profile_of_the_torch_model(slices: bool) -> None:
    """Output is the same as without; parts are within the steps; counts are those of the work; the model is put back."""
    expected = Driver(make_runner(MODEL)).generate(PROMPTS, 6)
    runner = make_runner(MODEL)
    runner.begin_profile(slices=slices)
    found = Driver(runner).generate(PROMPTS, 6)
    profiled = runner.end_profile(1)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert runner.model is MODEL
    assert not runner.profiler.on
    parts = {part.part: part for part in profiled.parts}
    assert parts.keys() >= {
        "embed",
        "norm",
        "qkv",
        "attention",
        "output",
        "gate_up",
        "activation",
        "down",
        "head",
    }
    assert REST not in parts
    within = sum(step.ended - step.began for step in profiled.steps)
    assert 0 < sum(part.seconds for part in profiled.parts) <= within
    layers, steps = MODEL.config.layers, sum(step.tokens > 0 for step in profiled.steps)
    assert parts["qkv"].calls == layers * steps
    tokens = sum(step.tokens for step in profiled.steps)
    assert parts["qkv"].operations == 2 * tokens * weights_of(MODEL.config)["qkv"]
    assert parts["qkv"].bytes == 4 * steps * weights_of(MODEL.config)["qkv"]
    assert profiled.began <= profiled.steps[0].began
    assert all(a.ended <= b.began for a, b in zip(profiled.steps, profiled.steps[1:], strict=False))
    assert profiled.steps[-1].ended <= profiled.ended
    assert sorted(length for step in profiled.steps for length in step.first) == [3, 37]
    assert bool(profiled.slices) is slices


def test_attention_counts_what_it_reads() -> None:
    """A prompt of n tokens in one chunk reads n keys and values, and n (n + 1) / 2 pairs of query and key are multiplied."""
    runner = make_runner(MODEL)
    runner.begin_profile(slices=False)
    Driver(runner).generate([PROMPTS[1]], 1)
    attention = next(part for part in runner.end_profile(1).parts if part.part == "attention")
    config, length = MODEL.config, len(PROMPTS[1])
    assert attention.bytes == length * config.kv_bytes(4)
    pairs = length * (length + 1) // 2
    assert attention.operations == 4 * config.layers * config.heads * config.head_dim * pairs


class FakeEngine:
    """Adds up what it is told, as the native engine does."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(
            layers=[
                SimpleNamespace(**{part: SimpleNamespace(data=torch.zeros(10)) for part in LINEAR})
                for _ in "ab"
            ],
            head=SimpleNamespace(data=torch.zeros(7)),
        )
        self.seconds = dict.fromkeys(("qkv", "head"), 1.0)
        self.recording: list[bool] = []

    def timings(self) -> dict[str, float]:
        return dict(self.seconds)

    def events(self, on: bool) -> list[tuple[str, int, int]]:
        self.recording.append(on)
        return [("qkv", 1_000_000_000, 250_000_000)]


def test_the_native_engine_tells_by_itself() -> None:
    """Only what it adds during the profile counts; its events are switched on for slices alone, and off at the end."""
    engine = FakeEngine()
    source = NativeSource(NativeLM(MODEL.config, cast("Engine", engine)), slices=True)
    engine.seconds["qkv"] += 0.25
    seconds, slices = source.finish()
    assert seconds == {"qkv": 0.25, "head": 0.0}
    assert [(one.part, one.began, one.seconds) for one in slices] == [("qkv", 1.0, 0.25)]
    assert engine.recording == [True, False]
    assert source.weight_bytes() == {**dict.fromkeys(LINEAR, 80), "head": 28}
    engine.recording.clear()
    assert NativeSource(NativeLM(MODEL.config, cast("Engine", engine)), slices=False).finish()[1] == []
    assert not any(engine.recording)


def test_one_profile_at_a_time() -> None:
    """A second one is refused and the first goes on."""
    runner = make_runner(tiny_model(tiny_config()))
    runner.begin_profile(slices=False)
    with pytest.raises(Overloaded, match="already"):
        runner.begin_profile(slices=True)
    assert runner.end_profile(1).slices == []


@pytest.mark.skipif(sys.platform != "linux", reason="a nice value per thread is Linux's")
def test_only_the_thread_that_gives_way_is_nice() -> None:
    """The thread and those it starts have the value; this one, and with it whoever else answers, keeps its own."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []

    def note() -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def compute() -> None:
        give_way(19)
        note()
        give_way(0)
        child = threading.Thread(target=note)
        child.start()
        child.join()

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert seen == [19, 19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.parametrize("nice", [-1, 20])
def test_a_nice_value_that_there_is_not(nice: int) -> None:
    """It is named, with its bounds."""
    with pytest.raises(ConfigError, match=rf"\[model\] nice: {nice}, expected 0 to 19"):
        give_way(nice)
