"""Arguments are refused where they are written: by name, before anything is asked of a backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.lang.arguments import COUNTS, NUMBERS
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.function import Function
from sgl_actors.lang.graph import Recorder
from sgl_actors.lang.ir import Gen, as_nodes
from sgl_actors.lang.primitives import gen, role, select

LONE = "Hi\ud800"


@sgl.function
async def empty(s: sgl.ProgramState) -> None:
    s += "x"


class Unreachable:
    """A backend that no program gets to."""

    async def start(self, name: str, options: Any) -> Any:
        raise AssertionError("a backend was asked")

    async def recall(self, name: str, options: Any) -> None:
        raise AssertionError("a backend was asked")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1", True])
async def test_numbers_are_finite_and_in_range(name: str, value: Any) -> None:
    """gen and run refuse what is no finite number, and name the argument."""
    with pytest.raises(InvalidPrimitive, match=rf"gen\('x'\): {name}") as refused:
        gen("x", **{name: value})
    assert refused.value.param == name
    with pytest.raises(InvalidPrimitive, match=name):
        await empty.bind().run(backend=Unreachable(), **{name: value})


@pytest.mark.parametrize("name", [*COUNTS, "top_logprobs"])
@pytest.mark.parametrize(
    "value", [10**30, -(10**30), pytest.param(10**5000, id="long"), 1.0, math.nan, "1", True]
)
async def test_counts_fit(name: str, value: Any) -> None:
    """Whole numbers that no node can take are refused by name, not found out by an encoder."""
    with pytest.raises(InvalidPrimitive, match=rf"gen: {name}"):
        gen(**{name: value})
    if name != "top_logprobs":
        with pytest.raises(InvalidPrimitive, match=name):
            await empty.bind().run(backend=Unreachable(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_token_ids", [10**30]), ("stop_token_ids", 5), ("logit_bias", {1: math.nan}), ("logit_bias", {10**30: 1.0}),
        ("logit_bias", [1]), ("logit_bias", 3), ("ignore_eos", "yes"), ("stop", 3), ("stop", [""]), ("stop", LONE), ("stop", ["a", LONE]),
    ],
)  # fmt: skip
async def test_lists_and_flags(name: str, value: Any) -> None:
    """Each item is checked."""
    with pytest.raises(InvalidPrimitive, match=name):
        gen(**{name: value})
    with pytest.raises(InvalidPrimitive, match=name):
        await empty.bind().run(backend=Unreachable(), **{name: value})


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -1, "5", None, 10**400])
async def test_a_programs_time_is_a_number_of_seconds(timeout: Any) -> None:
    """`run(timeout=nan)` would never end."""
    with pytest.raises(InvalidPrimitive, match="timeout"):
        await empty.bind().run(backend=Unreachable(), timeout=timeout)


def test_the_ends_of_the_ranges_are_taken_as_plain_numbers() -> None:
    """The documented bounds are inside; other kinds of numbers become ints and floats, which travel."""
    for name, ends in (COUNTS | NUMBERS).items():
        for end in ends:
            if (name, end) == ("top_p", 0.0):
                continue  # no mass, no token: refused
            (node,) = gen(**{name: end}).nodes  # type: ignore[call-overload]
            assert isinstance(node, Gen)
            assert getattr(node.sampling, name) == end
    (node,) = gen(temperature=0, logit_bias={2: 1, 1: 0.5}, stop="a").nodes
    assert isinstance(node, Gen)
    assert (type(node.sampling.temperature), node.sampling.stop) == (float, ("a",))
    assert node.sampling.logit_bias == ((1, 0.5), (2, 1.0))


@pytest.mark.parametrize(
    ("write", "where"),
    [
        (lambda: as_nodes(LONE), "s \\+="),
        (lambda: "a" + gen("x") + LONE, "s \\+="),
        (lambda: select("y", ["a", LONE]), "select\\('y'\\): choices"),
        (lambda: gen("x", choices=["a", LONE]), "select\\('x'\\): choices"),
        (lambda: gen(LONE), "gen"),
        (lambda: role(LONE, "x"), "role"),
        (lambda: sgl.function(name=LONE)(empty.body), "function"),
    ],
)
def test_lone_surrogates_are_refused_at_once(write: Callable[[], Any], where: str) -> None:
    """Half a surrogate pair is no text; the message names the primitive and can itself be encoded."""
    with pytest.raises(InvalidPrimitive, match=where) as refused:
        write()
    assert refused.value.message.encode()


@pytest.mark.parametrize("what", ["append", "read", "set", "value", "join", "big", "branches"])
async def test_states_refuse_what_does_not_travel(what: str) -> None:
    """Text, names and values of a running body are checked in its own line."""

    @sgl.function
    async def program(s: sgl.ProgramState) -> None:
        match what:
            case "append":
                s += LONE
            case "read":
                s[LONE]
            case "set":
                s[LONE] = 1
            case "value":
                s["x"] = [LONE]
            case "join":
                s.fork(2).join(LONE)
            case "big":
                s["x"] = 10**30
            case "branches":
                s.fork(10**30)

    with pytest.raises(InvalidPrimitive):
        await program.bind().run(backend=Recorder())


def test_streaming_a_name_that_is_no_text() -> None:
    """The variable's name is checked, too."""
    function: Function[[]] = empty
    with pytest.raises(InvalidPrimitive, match="stream"):
        function.stream(LONE).__anext__().send(None)
