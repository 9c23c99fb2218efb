"""Every example runs as a user runs it: as a file, on an embedded node, with small settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS_DATA = {"react.py", "classify.py"}
RUNS = {
    "chat.py": (
        ["--max-tokens", "12", "What is a bee?", "And a hive?"],
        r"> And a hive\?\n.*cached prompt tokens per turn",
    ),
    "essay_judge.py": (["--count", "1"], r"grade: (good|fair|poor)\n(  \w+: \S.*\n){3}  Usage"),
    "tree_of_thought.py": (
        ["--plans", "2", "--max-tokens", "16"],
        r"answer 4: .*\nvote: .+ \(\d of 4\); right: \d+",
    ),
    "react.py": (["--steps", "1"], r"Thought: .*\nSearch: .*\nObservation: .*\nAnswer: .*\(right: .+\)"),
    "classify.py": (
        ["--count", "4"],
        r"\((right|wrong)\)\n.*right: \d of 4 \(guessing: 1\); \d+ of \d+ prompt tokens",
    ),
}


def test_every_example_is_run_and_short() -> None:
    """No example is forgotten here; each has a docstring, a `main`, and less than 80 lines."""
    files = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.py")}
    assert files.keys() == RUNS.keys()
    for text in files.values():
        assert text.startswith('"""')
        assert "async def main(argv" in text
        assert len(text.splitlines()) < 80


@pytest.mark.parametrize("name", [*sorted(NEEDS_DATA), "essay_judge.py", "tree_of_thought.py"])
def test_an_example_without_its_data_says_which_it_needs(name: str, tmp_path: Path) -> None:
    """A wrong folder, or none where one is needed, is wrong usage and no traceback."""
    environ = {key: value for key, value in os.environ.items() if key != "SGL_ACTORS_DATA"}
    for arguments in (["--data", str(tmp_path)], *([[]] if name in NEEDS_DATA else [])):
        done = subprocess.run(
            [sys.executable, str(FOLDER / name), *arguments],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert re.search(
            r"error: needs \w+/\S+ below --data or \$SGL_ACTORS_DATA \(docs/data\.md\)", done.stderr
        )


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", RUNS)
def test_example(name: str) -> None:
    """It ends well, says what it should, and leaves nothing on standard error."""
    pytest.importorskip("sgl_actors.actors.node.embedded", reason="the node is not built")
    if name in NEEDS_DATA and not os.environ.get("SGL_ACTORS_DATA"):
        pytest.skip("needs $SGL_ACTORS_DATA")
    arguments, expected = RUNS[name]
    command = [sys.executable, str(FOLDER / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.DOTALL | re.MULTILINE), done.stdout
    assert "Traceback" not in done.stderr
