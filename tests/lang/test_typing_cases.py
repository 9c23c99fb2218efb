"""What a type checker infers for typed programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "typing_cases.py"


@pytest.mark.timeout(300)
def test_a_strict_checker_infers_the_types_of_slots(tmp_path: Path) -> None:
    """`mypy --strict` agrees with every `assert_type` of the cases, and sees a slot of another type, a misspelt argument, and what is no pattern."""
    wrong = tmp_path / "wrong_cases.py"
    wrong.write_text(
        "import sgl_actors as sgl\n"
        "number: sgl.Slot[int] = sgl.gen('x')\n"
        "sgl.gen('x', type=int, tempratur=0.5)\n"
        "sgl.repeat(5)\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(CASES),
        str(wrong),
    ]
    done = subprocess.run(
        command, cwd=CASES.parents[2], capture_output=True, text=True, timeout=290, check=False
    )
    lines = [line.partition(" error: ") for line in done.stdout.splitlines() if " error: " in line]
    places = {(Path(place.split(":")[0]).name, int(place.split(":")[1])) for place, _, _ in lines}
    assert places == {("wrong_cases.py", line) for line in (2, 3, 4)}, done.stdout + done.stderr
