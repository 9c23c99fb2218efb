"""What a type checker infers for typed programs. One run of mypy is asked by all tests."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "typing_cases.py"

SLOTS = """
import sgl_actors as sgl
number: sgl.Slot[int] = sgl.gen('x')
sgl.gen('x', type=int, tempratur=0.5)
sgl.repeat(5)
"""
PARAMETERS = """
import sgl_actors as sgl

@sgl.function
async def judge(s: sgl.ProgramState, essay: str, *, marks: int = 3) -> None:
    s += sgl.gen("x")

async def main() -> None:
    state = await judge.run("text", marks=2)
    reveal_type(state)
    judge.bind(essay="x")
    judge.bind(essay=3)
    await judge.bind(essay="x", mark=1).run(temperature=0)
    await judge.run(essay="x", marks=2, temperature=0, budget=sgl.Budget(calls=1))
"""

Said = dict[str, list[tuple[int, str, str]]]
"""Of each file, what is said: line, kind, words."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What `mypy --strict` says of the cases and of the texts above."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("typing")
    files = [CASES]
    for name, text in (("slots.py", SLOTS), ("parameters.py", PARAMETERS)):
        files.append(folder / name)
        files[-1].write_text(text)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(folder / "cache"),
        *map(str, files),
    ]
    done = subprocess.run(
        command, cwd=CASES.parents[2], capture_output=True, text=True, timeout=290, check=False
    )
    assert done.stderr == ""
    found: Said = defaultdict(list)
    for line in done.stdout.splitlines()[:-1]:
        place, kind, words = line.split(": ", 2)
        found[Path(place.split(":")[0]).name].append((int(place.split(":")[1]), kind, words))
    return found


def errors(said: Said, name: str) -> list[int]:
    """Lines of a file that are wrong."""
    return sorted({line for line, kind, _ in said.get(name, []) if kind == "error"})


@pytest.mark.timeout(300)
def test_a_strict_checker_infers_the_types_of_slots(said: Said) -> None:
    """`mypy --strict` agrees with every `assert_type` of the cases, and sees a slot of another type, a misspelt argument, and what is no pattern."""
    assert errors(said, CASES.name) == []
    assert errors(said, "slots.py") == [3, 4, 5]


@pytest.mark.timeout(300)
def test_types_of_parameters_are_kept(said: Said) -> None:
    """mypy knows a program's parameters: a wrong type and a misspelt name are errors, right calls are none."""
    assert errors(said, "parameters.py") == [12, 13]
    assert any('"sgl_actors.lang.finished.FinishedState"' in words for _, _, words in said["parameters.py"])


def test_nothing_else_is_wrong(said: Said) -> None:
    """The package that these files import passes the same check."""
    assert {name for name in said if errors(said, name)} == {"slots.py", "parameters.py"}
