"""Programs written for SGLang, with their import line changed; and a node that is faked behind the background loop."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_actors.compat as sgl
from sgl_actors.lang.threaded.loop import background
from tests.programs.fakes import FakeClient, backend_of

PROGRAMS = Path(__file__).parent / "programs"
IMPORT, OURS = "\nimport sglang as sgl\n", "\nimport sgl_actors.compat as sgl\n"


def load(name: str, folder: Path) -> dict[str, Any]:
    """Names of program `name` of this folder, its import line changed and nothing else."""
    text = (PROGRAMS / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("sglang") == text.count(IMPORT) == 1
    changed = folder / f"{name}.py"
    changed.write_text(text.replace(IMPORT, OURS), encoding="utf-8")
    return runpy.run_path(str(changed))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens on the background loop."""

    async def happens() -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    background.wait(happens)


@pytest.fixture
def client() -> FakeClient:
    """What the programs ask."""
    return FakeClient()


@pytest.fixture
def backend(client: FakeClient) -> Iterator[None]:
    """Programs run against `client`."""
    backend = backend_of(client)
    sgl.set_default_backend(backend)
    yield
    sgl.set_default_backend(None)
    background.wait(backend.close)
