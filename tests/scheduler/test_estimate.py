"""How long outputs are expected to get."""

from __future__ import annotations

from sgl_actors.actors.scheduler.estimate import ENOUGH, REMEMBERED, OutputEstimate


def test_estimate_is_a_high_quantile_of_what_has_ended() -> None:
    """Nine of ten outputs stay within it."""
    estimate = OutputEstimate(first=256, least=1)
    for length in range(1, 101):
        estimate.ended(length)
    assert 90 <= estimate.expect(0) <= 92


def test_long_runners_are_judged_by_long_runners() -> None:
    """Of a request that has 60 tokens the short outputs say nothing."""
    estimate = OutputEstimate(first=256, least=1)
    for _ in range(50):
        estimate.ended(10)
        estimate.ended(100)
    assert estimate.expect(60) == 40
    assert estimate.expect(150) == 150, "longer than any: as much again"


def test_before_enough_have_ended_a_fixed_length_is_expected() -> None:
    """One short answer is no rule."""
    estimate = OutputEstimate(first=256, least=32)
    estimate.ended(3)
    assert estimate.expect(0) == 256
    for _ in range(ENOUGH):
        estimate.ended(3)
    assert estimate.expect(0) == 32


def test_old_ends_are_forgotten() -> None:
    """The estimate follows what is asked now."""
    estimate = OutputEstimate(first=256, least=1)
    for _ in range(REMEMBERED):
        estimate.ended(500)
    for _ in range(REMEMBERED):
        estimate.ended(20)
    assert estimate.expect(0) == 20


def test_a_wrong_estimate_is_raised_and_comes_back() -> None:
    """A retraction makes admission more careful, not for ever and not without bound."""
    estimate = OutputEstimate(first=256, least=1)
    for _ in range(50):
        estimate.ended(40)
    for _ in range(100):
        estimate.wrong()
    assert 40 < estimate.expect(0) <= 8 * 40
    for _ in range(200):
        estimate.ended(40)
    assert estimate.expect(0) == 40
