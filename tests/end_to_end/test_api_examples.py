"""The example programs on our own node as an API model, behind `/v1/completions`, as `sgl-actors run --api` has them: they print what they print natively."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import sgl_actors as sgl
from sgl_actors.actors.node.record import NodeRecord
from sgl_actors.cli.programs import use_api
from sgl_actors.lang.threaded.config import global_config
from tests.examples.test_examples import FOLDER, NEEDS_DATA, RUNS, WITHOUT_MODEL

pytestmark = pytest.mark.model

QUICK = {"chat.py", "classify.py", "typed.py"}
ELSEWHERE = {"durable.py"}
"""It starts a process, which knows nothing of this one's default."""


@pytest.fixture(autouse=True)
def default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples lie beside each other, and set where programs run."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(global_config, "default_backend", None)
    yield
    sgl.set_default_backend(None)


def printed(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines an example prints, but for those about tokens, and the pieces that a text comes in: another backend has others."""
    ended = import_module(Path(name).stem).main(arguments)
    if inspect.iscoroutine(ended):
        asyncio.run(ended)
    told = [line for line in capsys.readouterr().out.splitlines() if " prompt tokens" not in line]
    return [line.replace("|", "") for line in told if "Usage(" not in line]


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
    sgl.set_default_backend(None)
    use_api("openai-completions:default", f"{node.url}/v1")
    assert printed(name, arguments, capsys) == native
    assert native
