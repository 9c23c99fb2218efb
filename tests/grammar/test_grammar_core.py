"""Who waits for which compilation, and what is kept of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.grammar import core
from sgl_actors.actors.grammar.core import Compilations, Outcome
from sgl_actors.actors.grammar.messages import Compiled
from sgl_actors.errors import InvalidRequest, Overloaded
from sgl_actors.lang.constraints.constraint import Constraint

A, B, C = (Constraint("regex", source) for source in "abc")
DONE = Compiled("fsm", b"12345678")
WRONG = InvalidRequest("regex: wrong", param="regex")


def make(kept: int = 8, queue: int = 8, kept_bytes: int = 1 << 20) -> Compilations[str]:
    return Compilations(kept, queue, kept_bytes)


def run(compilations: Compilations[str], constraint: Constraint, outcome: Outcome | None = DONE) -> list[str]:
    assert compilations.begin() == constraint
    return compilations.end(outcome)


def test_equal_constraints_are_compiled_once() -> None:
    """All who ask before the end wait for the same compilation, whoever asks later gets what is kept."""
    compilations = make()
    assert compilations.ask(A, "one") is None
    assert compilations.begin() == A
    assert compilations.ask(Constraint("regex", "a"), "two") is None
    assert compilations.end(DONE) == ["one", "two"]
    assert compilations.ask(A, "three") is DONE
    assert compilations.begin() is None
    assert compilations.counters == {"asked": 3, "joined": 1, "hits": 1, "compiled": 1, "compiled_fsm": 1}


def test_the_kind_is_part_of_a_constraint() -> None:
    """The same source as another kind is another constraint."""
    compilations = make()
    compilations.ask(A, "one")
    run(compilations, A)
    assert compilations.ask(Constraint("lark", "a"), "two") is None


def test_they_are_compiled_in_the_order_of_asking() -> None:
    """First asked, first compiled; a constraint that could not be tried is forgotten."""
    compilations = make()
    for constraint in (B, A, B, C):
        compilations.ask(constraint, "x")
    assert run(compilations, B, None) == ["x", "x"]
    assert [run(compilations, constraint) for constraint in (A, C)] == [["x"], ["x"]]
    assert compilations.ask(B, "again") is None


def test_errors_are_kept() -> None:
    """What is wrong with a constraint is said again without compiling it again."""
    compilations = make()
    compilations.ask(A, "one")
    run(compilations, A, WRONG)
    assert compilations.ask(A, "two") is WRONG


def test_the_longest_unused_goes_first() -> None:
    """Of too many results the one whose last question is longest ago is forgotten."""
    compilations = make(kept=2)
    for constraint in (A, B):
        compilations.ask(constraint, "x")
        run(compilations, constraint)
    compilations.ask(A, "x")
    compilations.ask(C, "x")
    run(compilations, C)
    assert (compilations.kept, compilations.ask(A, "x"), compilations.ask(B, "x")) == (2, DONE, None)


def test_kept_bytes_are_bounded() -> None:
    """Sources and automata count; one that is too large alone is not kept."""
    compilations = make(kept_bytes=20)
    for constraint in (A, B, C):
        compilations.ask(constraint, "x")
        run(compilations, constraint)
    assert (compilations.kept, compilations.kept_bytes) == (2, 18)
    large = Constraint("regex", "a" * 30)
    compilations.ask(large, "x")
    run(compilations, large)
    assert (compilations.kept, compilations.kept_bytes) == (0, 0)


def test_the_queue_is_bounded() -> None:
    """One constraint too many is refused as retryable; joining one that waits is not, and what runs does not wait."""
    compilations = make(queue=1)
    compilations.ask(A, "x")
    with pytest.raises(Overloaded, match="1 constraints wait"):
        compilations.ask(B, "x")
    assert compilations.ask(A, "y") is None
    compilations.begin()
    assert compilations.ask(B, "x") is None
    assert compilations.waiting == 1


def test_who_goes_away_leaves_the_others() -> None:
    """A caller who cancels is dropped; what nobody waits for is not begun, what has begun is finished and kept."""
    compilations = make()
    for constraint, waiter in ((A, "one"), (A, "two"), (B, "three")):
        compilations.ask(constraint, waiter)
    compilations.forget(B, "three")
    compilations.forget(A, "one")
    compilations.forget(A, "nobody")
    assert compilations.begin() == A
    compilations.forget(A, "two")
    assert compilations.end(DONE) == []
    assert compilations.begin() is None
    assert compilations.ask(A, "later") is DONE


def test_two_crashes_and_it_is_refused() -> None:
    """After the first crash it is tried when asked again, after the second it is refused at once; others are not concerned."""
    compilations = make()
    for _ in range(2):
        assert compilations.ask(A, "x") is None
        compilations.begin()
        assert compilations.crash() == ["x"]
    refusal = compilations.ask(A, "x")
    assert isinstance(refusal, InvalidRequest)
    assert refusal.param == "regex"
    assert "not tried again" in refusal.message
    assert compilations.ask(B, "x") is None
    assert (compilations.counters["crashed"], compilations.counters["refused"]) == (2, 1)


def test_a_crash_is_forgiven() -> None:
    """A constraint that is compiled after a crash starts from nothing."""
    compilations = make(kept=0)
    for crashes in (True, False, True):
        assert compilations.ask(A, "x") is None
        compilations.begin()
        _ = compilations.crash() if crashes else compilations.end(DONE)
    assert compilations.ask(A, "x") is None


def test_offenders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many are remembered; the one whose crash is longest ago is forgotten first."""
    monkeypatch.setattr(core, "OFFENDERS", 2)
    compilations = make()
    for constraint in (A, A, B, C):
        compilations.ask(constraint, "x")
        compilations.begin()
        compilations.crash()
    assert compilations.ask(A, "x") is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["ask", "forget", "begin", "end", "crash"]))
    )
)
def test_every_waiter_is_answered_once(events: list[tuple[str, str]]) -> None:
    """Whatever happens in whatever order: who waits and does not leave is returned exactly once, bounds hold, bytes add up."""
    compilations: Compilations[int] = Compilations(3, 4, 40)
    waiting: dict[int, Constraint] = {}
    running: Constraint | None = None
    for number, (source, event) in enumerate(events):
        constraint = Constraint("regex", source * 3)
        if event == "ask":
            try:
                if compilations.ask(constraint, number) is None:
                    waiting[number] = constraint
            except Overloaded:
                assert compilations.waiting == 4
        elif event == "forget":
            for waiter in [waiter for waiter, wanted in waiting.items() if wanted == constraint][:1]:
                compilations.forget(constraint, waiter)
                del waiting[waiter]
        elif event == "begin" and running is None:
            running = compilations.begin()
            assert (running is None) == (not waiting)
        elif event in ("end", "crash") and running is not None:
            returned = compilations.end(DONE) if event == "end" else compilations.crash()
            assert returned == [waiter for waiter, wanted in waiting.items() if wanted == running]
            for waiter in returned:
                del waiting[waiter]
            running = None
        assert compilations.waiting == len({*waiting.values()} - {running}) <= 4
        assert compilations.kept <= 3
        assert compilations.kept_bytes == compilations.kept * 11
