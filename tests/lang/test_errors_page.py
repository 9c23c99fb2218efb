"""docs/errors.md: all errors are on it, and its programs end as it says."""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import Iterator
from doctest import ELLIPSIS, ELLIPSIS_MARKER, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import Overloaded, SglActorsError
from sgl_actors.lang.backends.mock import MockCall

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", PAGE, re.DOTALL)
BUDGET = sgl.Budget(calls=10)


def family(kind: type[SglActorsError] = SglActorsError) -> Iterator[type[SglActorsError]]:
    """All errors, but those that only the sync flavour and tests add."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith("sgl_actors.") and ".threaded." not in below.__module__:
            yield from family(below)


def answer(call: MockCall) -> Any:
    """What the page says that the mock says."""
    return Overloaded("the queue is full") if call.name == "fails" else "Paris"


def test_every_error_is_on_the_page() -> None:
    """With a heading of its own or a row of the table."""
    for name in sgl.__all__:
        getattr(sgl, name)  # imports the rooms that define errors
    for kind in set(family()):
        assert re.search(
            rf"^### {kind.__name__}$|^\| `{kind.__name__}` \||`{kind.__name__}`", PAGE, re.MULTILINE
        )


def test_the_table_states_the_status_of_each() -> None:
    """The number is the class's, and so is "retryable"."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE))
    kinds = {kind.__name__: kind for kind in family()}
    assert rows == {name: f"{kinds[name].status}{', retryable' * kinds[name].retryable}" for name in rows}


@pytest.mark.parametrize(("source", "expected"), PROGRAMS, ids=[e.partition(":")[0] for _, e in PROGRAMS])
async def test_a_program_of_the_page(source: str, expected: str) -> None:
    """It is the body of `async def example(s)`; the error and its message are those of the page."""
    known: dict[str, Any] = {"sgl": sgl}
    exec(compile(f"async def example(s):\n{textwrap.indent(source, '    ')}", "<errors.md>", "exec"), known)
    async with asyncio.timeout(20):
        with pytest.raises(SglActorsError) as caught:
            await sgl.function(known["example"]).run(backend=sgl.Mock(answer), budget=BUDGET)
    found = f"{type(caught.value).__name__}: {caught.value}"
    want = expected.strip().replace("…", ELLIPSIS_MARKER)
    assert OutputChecker().check_output(want, found, ELLIPSIS | NORMALIZE_WHITESPACE), found
