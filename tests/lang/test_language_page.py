"""docs/language.md: its examples run as they stand, and it leaves out no public name."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sgl_actors as sgl
from sgl_actors.lang.backends.mock import MockCall

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text("utf-8")
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "compat" not in block]
ANSWERS = {
    "city": '{"name": "Lima", "population": 10, "landmarks": []}',
    "": "12 euros each.",
    "input_1": '{"city": "Lisbon"}',
    "calls": '[{"tool": "weather", "arguments": {"city": "Oslo"}}]',
}


def answer(call: MockCall) -> Any:
    """What the model says to the programs of the page."""
    if call.choices:
        return call.choices[-1] if call.name == "action_2" else call.choices[0]
    return ANSWERS.get(call.name, "Paris")


@sgl.function
async def capital(s: sgl.ProgramState) -> None:
    """The program that the page calls `prog`."""
    s += "The capital: " + sgl.gen("answer")


@sgl.function
async def judge(s: sgl.ProgramState, essay: str) -> None:
    """The program that the page tests with a mock."""
    forks = s.fork(3)
    forks += essay + sgl.gen("note")
    s += "\n".join(await forks.join("note")) + sgl.select("grade", ["good", "fair"])


@pytest.mark.parametrize("source", BLOCKS, ids=range(len(BLOCKS)))
async def test_an_example_of_the_page(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the body of a program, or stands beside one."""
    monkeypatch.chdir(tmp_path)
    source = source.replace("asyncio.run(main())", "await main()").replace(
        "async def test_judge():", "if True:"
    )
    known: dict[str, Any] = {"sgl": sgl, "msgspec": msgspec, "prog": capital, "judge": judge}
    exec(compile(f"async def page(s):\n{textwrap.indent(source, '    ')}", "<language.md>", "exec"), known)
    mock = sgl.Mock(answer)
    sgl.set_default_backend(mock)
    try:
        async with asyncio.timeout(20):
            await sgl.function(known["page"]).run(backend=mock)
    finally:
        sgl.set_default_backend(None)


def test_every_function_of_the_language_is_on_the_page() -> None:
    """Classes that a program is given need no mention, nor do errors: they have a page of their own."""
    functions = {name for name in sgl.__all__ if name.islower() and not name.startswith("_")}
    assert {name for name in functions if not re.search(rf"\b{name}\b", PAGE)} == set()
