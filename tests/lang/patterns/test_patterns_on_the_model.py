"""The patterns on the real node: what the fake one only pretends."""

from __future__ import annotations

from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.lang.patterns import beam, best_of, judge, map_, vote

pytestmark = pytest.mark.model


@sgl.function
async def patterns(s: sgl.ProgramState) -> Any:
    s += "The capital of France is"
    best = await best_of(s, 3, sgl.gen("city", max_tokens=4, stop="."))
    voted = await vote(s, 5, sgl.gen("city", max_tokens=2, temperature=0.3))
    graded = await judge(s, "Is that about geography?")
    lands = await map_(
        s,
        ["Italy", "Japan"],
        lambda branch, land: f" Paris. The capital of {land} is" + sgl.gen("c", max_tokens=3, temperature=0),
    )
    way = await beam(s, sgl.gen("next", max_tokens=2), width=2, depth=2)
    s += way
    return {
        "scores": [one.score for one in best.candidates],
        "best": best.score,
        "voted": voted.value,
        "grade": graded.value,
        "lands": lands,
        "probability": way.score,
    }


async def test_patterns_run_on_the_node(node: NodeRecord) -> None:
    """Log probabilities, scores and cancelled branches are the node's own; the same seed gives the same (and leaves no lease)."""
    async with sgl.connect(node.endpoint) as backend:
        state = await patterns.run(backend=backend, seed=5)
    found = state.value
    assert found["best"] == max(found["scores"]) < 0
    assert "paris" in found["voted"].lower()
    assert 1 <= found["grade"] <= 5
    assert ["Rome" in found["lands"][0], "Tokyo" in found["lands"][1]] == [True, True]
    assert 0 < found["probability"] < 1
    assert state.text().startswith("The capital of France is")
    assert len(state.text()) > len("The capital of France is")
