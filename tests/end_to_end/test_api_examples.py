"""The example programs on our own node as an API model, behind `/v1/completions`: what they print is what they print natively."""

from __future__ import annotations

import asyncio
import inspect
import os
import runpy
from collections.abc import Iterator

import pytest

import sgl_actors as sgl
from sgl_actors.actors.node.record import NodeRecord
from tests.examples.test_examples import FOLDER, NEEDS_DATA, RUNS, WITHOUT_MODEL

pytestmark = pytest.mark.model

QUICK = {"classify.py", "tools.py", "tree_of_thought.py"}
ELSEWHERE = {"api.py", "durable.py"}
"""The one that runs the others, and the one that starts a process which knows nothing of this one's backend."""


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    """Examples set where programs run by default."""
    yield
    sgl.set_default_backend(None)


def printed(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines an example prints, but for those about tokens: another backend counts others."""
    ended = runpy.run_path(str(FOLDER / name))["main"](arguments)
    if inspect.iscoroutine(ended):
        asyncio.run(ended)
    sgl.set_default_backend(None)
    out = capsys.readouterr().out
    return [line for line in out.splitlines() if " prompt tokens" not in line and "Usage(" not in line]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in sorted(RUNS.keys() - WITHOUT_MODEL - ELSEWHERE)
    ],
)
def test_an_example_prints_the_same(name: str, node: NodeRecord, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores and samples included: seeds and log probabilities are the same through the API."""
    if name in NEEDS_DATA and not os.environ.get("SGL_ACTORS_DATA"):
        pytest.skip("needs $SGL_ACTORS_DATA")
    arguments, _ = RUNS[name]
    native = printed(name, [*arguments, "--url", node.url], capsys)
    behind = printed("api.py", ["--url", f"{node.url}/v1", name, *arguments], capsys)
    assert len(native) > 1
    assert behind == native
