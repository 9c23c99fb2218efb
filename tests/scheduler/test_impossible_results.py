"""Results that no worker can have."""

from __future__ import annotations

import math

import msgspec
import pytest

from sgl_actors.actors.scheduler.messages import Logprobs
from sgl_actors.actors.worker.fake import complete
from sgl_actors.actors.worker.messages import SequenceResult, Step, StepDone
from tests.scheduler.desk import GREEDY, Desk, request

IMPOSSIBLE = {
    "token that is none": SequenceResult(0, 2**63),
    "token beyond the vocabulary": SequenceResult(0, 1000),
    "negative token": SequenceResult(0, -2),
    "forced token beyond the vocabulary": SequenceResult(0, 5, (1001,)),
    "negative accepted token": SequenceResult(0, 5, accepted=(-1,), ran=2),
    "tokens behind none": SequenceResult(0, -1, (5,)),
    "more run than there is room for": SequenceResult(0, 5, ran=10**9),
    "less run than nothing": SequenceResult(0, 5, ran=-4),
    "more accepted than run": SequenceResult(0, 5, accepted=(5, 5), ran=2),
    "negative count": SequenceResult(0, 5, drafted=-1),
    "no log probabilities of what was accepted": SequenceResult(0, 5, accepted=(5,), ran=2),
}


@pytest.mark.parametrize("seconds", [0.01, math.nan, math.inf, -1.0])
@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_results_are_errors_of_their_sequence(kind: str, seconds: float) -> None:
    """That request ends with an error, its pages come back, and its neighbour in the same step does not notice."""
    desk = Desk()
    desk.submit(request("good", [1, 2, 3]), request("bad", [4, 5], logprobs=Logprobs(output=True)))
    while desk.to_cache:
        desk.cache_once()
    step = desk.to_worker.pop()
    assert isinstance(step, Step)
    done = desk.model.step(step)
    assert isinstance(done, StepDone)
    assert [one.seq for one in done.results] == [1, 2]
    results = [
        msgspec.structs.replace(IMPOSSIBLE[kind], seq=2) if one.seq == 2 else one for one in done.results
    ]
    desk.take(desk.core.step_done(StepDone(done.epoch, done.number, results, seconds)))
    desk.run()
    assert desk.finish("bad").reason == "error"
    assert desk.output("bad") == []
    assert desk.output("good") == complete([1, 2, 3], GREEDY, 3, 1000)
    assert math.isfinite(desk.core.steps.seconds)
    assert desk.core.steps.budget.tokens(decoding=True) >= 1
    desk.idle()
