"""Every example runs as a user runs it: as a file, with small settings; all but one on the node that all tests share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_actors.actors.node.record import NodeRecord

FOLDER = Path(__file__).parents[2] / "examples"
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
NEEDS_DATA = {"hellaswag.py", "mmlu.py", "rag.py", "react.py"}
HAS_SAMPLE = {"essay_judge.py", "extract.py", "json_decode.py", "multi_chain.py", "tree_of_thought.py"}
WITHOUT_MODEL = {"unit_test.py"}
EMBEDDED = {"classify.py"}
"""Runs on a node of its own, as programs do that are told nothing."""
LINES = 60
RUNS = {
    "chat.py": (
        ["--max-tokens", "12", "What is a bee?", "And a hive?"],
        r"> And a hive\?\n.*cached prompt tokens per turn: \[\d, [1-9]\d+\]",
    ),
    "classify.py": (["Stir it well."], r"Stir it well\.\n  (cooking|sport|weather) \(\d+%\)"),
    "durable.py": (
        [],
        r"ended with 1\nbegun at [\d:]{8}, ended at [\d:]{8}: .*\n[45] calls of the model",
    ),
    "essay_judge.py": (["--count", "1", "--max-tokens", "16"], r"grade: [1-5]\.\d of 5\n(  \w+: .*\n){3}"),
    "extract.py": (["--count", "1"], r"\w+, \w+, .+\n  Usage\(prompt_tokens=\d+"),
    "hellaswag.py": (
        ["--count", "2", "--shots", "1"],
        r"on 2 items.*\n  token_length_normalized +\d+%\n  greedy_token_selection +\d+%\n  unconditional_likelihood_normalized +\d+%",
    ),
    "json_decode.py": (["--count", "1", "--characters", "800"], r".+ in .+: [\d,]+ inhabitants; .+"),
    "mmlu.py": (
        ["--count", "4"],
        r"which is (right|wrong)\n.*accuracy: \d+% of 4.*\n[1-9][\d,]* of [\d,]+ prompt tokens",
    ),
    "multi_chain.py": (["--chains", "2", "--max-tokens", "16"], r"  2: .*\nanswer: -?\d+; right: \d+"),
    "rag.py": (["--count", "1"], r"\[.+, which (supports|does not support) it\]\n  right: .+"),
    "react.py": ([], r"Thought: .*\nSearch: .*\nObservation: .*\nAnswer: .*\(right: .+\)"),
    "skeleton_of_thought.py": (["--count", "2", "--max-tokens", "16"], r"(\* .*\n    .*)+"),
    "sync_flavour.py": ([], r"capital of France\?.+\n.*\|\n1\. .*\n2\. .*"),
    "tools.py": ([], r"Action: add\nAction Input: \{.*\}\nObservation: \d+\n.*as a number: \d+"),
    "tree_of_thought.py": (["--max-tokens", "12"], r"(  [01]\.\d\d .*\n){9}answer: -?\d+; right: \d+"),
    "typed.py": (
        [],
        r"age +\d+\n  way +'(plane|ferry)'\n  cities +\[.*\]\n  date +datetime.date\(.*currency +'(euros|crowns)'",
    ),
    "unit_test.py": ([], r"test_a_complaint\w+: passed\n.*test_a_question\w+: passed"),
}


def run(name: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    command = [sys.executable, str(FOLDER / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_every_example_is_run_and_short() -> None:
    """No example is forgotten here; each has a docstring, a `main`, and less than 60 lines."""
    files = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.py")}
    assert files.keys() == RUNS.keys()
    for text in files.values():
        assert text.startswith('"""')
        assert "def main(argv" in text
        assert len(text.splitlines()) < LINES


def test_every_example_is_in_the_table_of_the_readme() -> None:
    """Each has one row, and there is no other."""
    assert sorted(re.findall(r"^\| \[`(\w+\.py)`\]\(examples/\1\) \|", README, re.MULTILINE)) == sorted(RUNS)


@pytest.mark.parametrize("name", sorted(NEEDS_DATA | HAS_SAMPLE))
def test_an_example_without_its_data_says_which_it_needs(name: str, tmp_path: Path) -> None:
    """A wrong folder, or none where one is needed, is wrong usage and no traceback."""
    environ = {key: value for key, value in os.environ.items() if key != "SGL_ACTORS_DATA"}
    for arguments in (["--data", str(tmp_path)], *([[]] if name in NEEDS_DATA else [])):
        done = run(name, *arguments, env=environ, cwd=tmp_path)
        assert done.returncode == 2
        assert re.search(
            r"error: needs \w+/\S+ below --data or \$SGL_ACTORS_DATA \(docs/data\.md\)", done.stderr
        )


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(RUNS.keys() - WITHOUT_MODEL))
def test_example(name: str, node: NodeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends well, says what it should, and leaves nothing on standard error."""
    monkeypatch.setenv("SGL_ACTORS_JOURNAL", str(tmp_path / "journal.db"))
    if name in NEEDS_DATA and not os.environ.get("SGL_ACTORS_DATA"):
        pytest.skip("needs $SGL_ACTORS_DATA")
    arguments, expected = RUNS[name]
    done = run(name, *arguments, *([] if name in EMBEDDED else ["--url", node.url]))
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.DOTALL), done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("name", sorted(WITHOUT_MODEL))
def test_an_example_that_needs_no_model(name: str) -> None:
    """It runs anywhere."""
    arguments, expected = RUNS[name]
    done = run(name, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(expected, done.stdout, re.DOTALL), done.stdout
