"""What `benchmarks.tails` takes for the worker's time and what for overhead."""

from __future__ import annotations

import pytest

from benchmarks.tails import overheads
from sgl_actors.actors.worker.messages import Profiled, StepTime

STEPS = [
    StepTime(0, 0.0, 0.0, 2.0, 2.0, 16, 16, 16),
    StepTime(1, 2.0, 2.25, 4.0, 4.0, 60, 17, 16, started=(37,)),
    StepTime(2, 4.0, 4.0, 5.0, 5.0, 17, 17, 17, first=(37,)),
    StepTime(3, 5.0, 5.0, 9.0, 9.0, 16, 16, 16),
]

PROFILED = Profiled(0.0, 9.0, 1, STEPS, [], [])


def test_steps_that_were_there_before_are_no_overhead() -> None:
    """Sent within step 0, taken up by step 1 after a gap, answered by step 2, heard of within step 3."""
    ((before, after),) = overheads([(37, 1.0, 5.5)], PROFILED)
    assert (before, after) == pytest.approx((0.25, 0.5))


def test_prompts_beyond_the_profile_are_left_out() -> None:
    """Without the step that took it up, or the one that answered, nothing can be said; another's length is another prompt; what ran before the profile is not known."""
    assert overheads([(37, 3.0, 6.0), (37, 1.0, 4.5), (36, 1.0, 5.5), (37, -1.0, 5.5)], PROFILED) == []
