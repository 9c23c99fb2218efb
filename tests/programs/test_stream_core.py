"""The bookkeeping of one stream against a plain list of what was written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.programs.stream import Stream, describe_failure
from sgl_actors.errors import Overloaded
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import AnyNode, ConstantText, Fork, Gen, Join, Select, SetVariable
from sgl_actors.lang.results import Failure

names = st.sampled_from("abc")
nodes = st.one_of(
    st.builds(ConstantText, st.just("t")),
    st.builds(Gen, st.one_of(st.none(), names)),
    st.builds(SetVariable, names, st.just(0)),
)


@given(st.lists(st.lists(nodes, max_size=4), max_size=5), st.integers(0, 20), st.integers(0, 21), names)
def test_a_read_waits_for_the_last_definer_before_its_place(
    batches: list[list[AnyNode]], done: int, position: int, name: str
) -> None:
    """`definer` is the last node in [done, position) that writes the name, else the value is there or unknown."""
    stream = Stream("p", "0")
    flat = [node for batch in batches for node in batch]
    for batch in batches:
        stream.append(batch)
    done = min(done, len(flat))
    for number in range(done):
        head = stream.head()
        assert head is not None
        assert head.number == number
        if isinstance(head.node, Gen | SetVariable):
            stream.define(head.node.name, number)
        stream.done(number)
    writes = [n for n, node in enumerate(flat) if isinstance(node, Gen | SetVariable) and node.name == name]
    waiting = [n for n in writes if done <= n < position]
    assert stream.definer(name, position) == (waiting[-1] if waiting else None)
    assert stream.reached(position) == (done >= min(position, len(flat)))
    written = [n for n in writes if n < done]
    if not waiting:
        value = stream.read(name, position)
        before = [n for n in written if n < position] or written
        assert value == before[-1] if written else isinstance(value, Failure)


def test_after_a_failure_nothing_waits_and_old_values_do_not_pass_for_new() -> None:
    """What was lost reads as the failure, what was there before stays readable, later nodes are dropped."""
    stream = Stream("p", "0")
    stream.append([SetVariable("x", 1), SetVariable("y", 2), Gen("x")])
    for number, name in enumerate("xy"):
        stream.define(name, number)
        stream.done(number)
    failure = stream.failure_of(Overloaded("full"))
    stream.fail(failure)
    stream.append([Gen("z")])
    assert stream.idle
    assert stream.read("x", 2) == 0
    assert stream.read("x", 3) is failure
    assert stream.read("y", 4) == 1
    assert stream.read("z", 4) is failure
    assert (failure.code, failure.variable, failure.cause_code) == ("primitive_failed", "x", "overloaded")


def test_a_gather_without_a_name_may_define_anything() -> None:
    """A read waits for it, because only its end shows what it defines."""
    stream = Stream("p", "0")
    stream.append([Fork(2), Join(0)])
    assert stream.definer("whatever", 2) == 1
    assert stream.definer("whatever", 1) is None


def test_the_tail_shows_what_is_to_come() -> None:
    """Text, then the primitives still to be done in braces."""
    stream = Stream("p", "0")
    stream.append([ConstantText("a" * 200), Gen("x"), Select(None, ("b",))])
    assert stream.tail().endswith("aaa{gen x}{select}")
    assert stream.tail().startswith("…")


def test_errors_of_programs_keep_their_class() -> None:
    """What a program does wrong is itself; what a node says becomes the cause; a foreign error names its type."""
    assert describe_failure(InvalidPrimitive("no"), "p", "0", "", "").code == "invalid_primitive"
    failure = describe_failure(ZeroDivisionError("by zero"), "p", "0.1", "v", "tail")
    assert (failure.code, failure.cause_code) == ("primitive_failed", "remote_error")
    text = str(failure.error())
    assert (
        text
        == "program 'p', branch 0.1, variable 'v': internal error: ZeroDivisionError: by zero; the prompt ends: 'tail'"
    )
