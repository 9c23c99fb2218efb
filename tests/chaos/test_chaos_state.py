"""Rounds are kept over the end of a run, and the table is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.case import Case, Form, Outcome, Plan
from benchmarks.chaos.state import Round, State
from benchmarks.chaos.table import BEGIN, END, render, write


async def run(plan: Plan) -> Outcome:
    return Outcome({"kills": plan.size})


CASE = Case("kills", "nothing is lost", run, Form(2, 5), Form(1, 1), {"back": (0.95, 3.0)})


def round_of(number: int) -> Round:
    return Round("kills", "long", number, 5, 1 + number, "abc", 2.0, Outcome({"kills": 5.0}))


def test_finished_rounds_are_found_again(tmp_path: Path) -> None:
    """A round counts as done for the same code and form only, and a torn last line as never written."""
    path = tmp_path / "state.jsonl"
    State(path).add(round_of(0))
    with path.open("ab") as file:
        file.write(b'{"case":"kills","form":"lo')
    state = State(path)
    assert state.find("kills", "long", 0, 5, 1, "abc") == round_of(0)
    assert state.find("kills", "long", 0, 5, 1, "def") is None
    assert state.find("kills", "long", 0, 9, 1, "abc") is None
    assert state.find("kills", "long", 1, 5, 2, "abc") is None
    state.add(round_of(1))
    assert State(path).rounds == [round_of(0), round_of(1)]


def test_the_table(tmp_path: Path) -> None:
    """A row sums up the rounds of a case with counts, percentiles, seeds and commit; a missed target and a failure are shown."""
    slow = Outcome({"kills": 5.0}, {"back": [0.5, 4.0]})
    rounds = [round_of(0), Round("kills", "long", 1, 5, 2, "def", 1.0, slow)]
    row = render([CASE], rounds).splitlines()[-1]
    for part in (
        "2 (long)",
        "1–2",
        "abc, def",
        "10 kills",
        "back: 0.5 / 4 / 4, n=2 (target p95 ≤ 3)",
        "slower than the target: back",
    ):
        assert part in row
    slow.failures.append("lost")
    assert "1 failures" in render([CASE], rounds)


def test_it_is_written_between_the_marks(tmp_path: Path) -> None:
    """What stands before and after stays, and a file without the marks is refused."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    write(page, "new")
    assert page.read_text("utf-8") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("nothing", "utf-8")
    with pytest.raises(SystemExit):
        write(page, "new")
