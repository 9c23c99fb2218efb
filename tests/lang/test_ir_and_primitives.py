"""Expressions: how they are put together, checked and sent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.lang import ir
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import (
    AnyNode,
    ConstantText,
    Expression,
    Gen,
    RoleBegin,
    RoleEnd,
    SamplingArgs,
    Select,
)
from sgl_actors.lang.primitives import assistant, gen, select, system, user
from sgl_actors.lang.sampling import derive_seed, resolve

names = st.one_of(st.none(), st.text(min_size=1, max_size=5))
nodes = st.one_of(
    st.builds(ConstantText, st.text()),
    st.builds(Gen, names, st.builds(SamplingArgs, max_tokens=st.integers(0, 9), stop=st.tuples(st.text()))),
    st.builds(Select, names, st.tuples(st.text(), st.text())),
    st.builds(RoleBegin, st.text()),
    st.builds(RoleEnd, st.text()),
    st.builds(ir.Variable, st.text(), st.text(), st.integers(0, 9)),
    st.builds(ir.SetVariable, st.text(), st.one_of(st.integers(-9, 9), st.lists(st.text()))),
    st.builds(ir.Fork, st.integers(1, 9)),
    st.builds(ir.Join, st.integers(0, 9), names, st.sampled_from(ir.JOIN_MODES)),
)


@given(st.lists(nodes))
def test_nodes_survive_the_wire(row: list[AnyNode]) -> None:
    """Whatever a stream may hold decodes to the same nodes."""
    data = msgspec.msgpack.encode(row)
    assert msgspec.msgpack.decode(data, type=list[AnyNode]) == row


@given(st.lists(st.one_of(st.text(min_size=1), nodes), min_size=2, max_size=6))
def test_plus_is_a_row(parts: list[object]) -> None:
    """`a + b + …` holds the parts in order, however it is bracketed."""
    flat = tuple(ConstantText(p) if isinstance(p, str) else p for p in parts)
    left: object = Expression()
    for part in parts:
        left = left + part  # type: ignore[operator]
    right: object = Expression()
    for part in reversed(parts):
        right = part + right  # type: ignore[operator]
    assert isinstance(left, Expression)
    assert isinstance(right, Expression)
    assert left.nodes == right.nodes == flat


def test_roles_wrap_what_they_are_given() -> None:
    """A role is its begin, the expression, its end; a role inside a role is refused."""
    expression = system("a") + assistant("b" + gen("x"))
    assert expression.nodes == (
        RoleBegin("system"), ConstantText("a"), RoleEnd("system"),
        RoleBegin("assistant"), ConstantText("b"), Gen("x"), RoleEnd("assistant"),
    )  # fmt: skip
    with pytest.raises(InvalidPrimitive, match="inside another turn"):
        user("a" + assistant("b"))


@pytest.mark.parametrize("choices", [[], ["a", ""], ["a", "a"], "yes", [1, 2]])
def test_choices_that_mean_nothing_are_refused(choices: Any) -> None:
    """select names what is wrong with its choices, at the line that wrote them."""
    with pytest.raises(InvalidPrimitive, match="choices"):
        select("x", choices)


def test_gen_with_choices_is_a_select() -> None:
    """As in SGLang."""
    assert gen("x", choices=["a", "b"]).nodes == (Select("x", ("a", "b")),)


@pytest.mark.parametrize("wrong", [{"stop": ""}, {"stop": [1]}, {"name": ""}, {"name": 3}])
def test_wrong_arguments_of_gen_are_refused(wrong: Any) -> None:
    """Names and stops are non-empty strings."""
    with pytest.raises(InvalidPrimitive):
        gen(**wrong)


def test_what_is_no_text_cannot_be_added() -> None:
    """Numbers and None are refused with a hint instead of being turned into text."""
    for other in (None, 3, ["a"]):
        with pytest.raises(InvalidPrimitive, match="cannot be part of a prompt"):
            gen("x") + other


def test_arguments_go_from_gen_to_run_to_default() -> None:
    """The nearest one that was given counts; False and 0 are given."""
    own = SamplingArgs(temperature=0.0, ignore_eos=False)
    options = resolve(own, SamplingArgs(temperature=0.7, ignore_eos=True, top_k=5), seed=3)
    assert (options.temperature, options.ignore_eos, options.top_k, options.max_tokens, options.seed) == (
        0.0,
        False,
        5,
        128,
        3,
    )
    assert resolve(SamplingArgs(seed=9), SamplingArgs(), seed=3).seed == 9


@given(st.integers(0, 2**63 - 1), st.integers(0, 50), st.integers(0, 50))
def test_seeds_are_functions_of_their_place(seed: int, one: int, two: int) -> None:
    """Equal places have equal seeds, others differ, and all fit into 63 bits."""
    first, second = derive_seed(seed, "0.1", one), derive_seed(seed, "0.1", two)
    assert (first == second) == (one == two)
    assert derive_seed(seed, "0.2", one) != first
    assert 0 <= first < 2**63
