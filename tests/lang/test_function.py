"""Binding, recording and the types of programs, without any runtime."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import sgl_actors as sgl
from sgl_actors.lang.graph import NotRecordable, record
from sgl_actors.lang.ir import ConstantText, Fork, Gen, Join, Variable


@sgl.function
async def pair(s: sgl.ProgramState, first: str, second: str = "two") -> None:
    """Two."""
    s += first + sgl.gen("x") + second


def test_the_first_parameter_is_s() -> None:
    """A body without `s` is refused where it is decorated."""
    with pytest.raises(sgl.InvalidPrimitive, match="first parameter"):

        @sgl.function
        async def wrong(state: sgl.ProgramState) -> None: ...


def test_a_function_keeps_its_name_and_doc() -> None:
    """They are those of the body; `name=` replaces the name."""
    assert (pair.name, pair.__doc__) == ("pair", "Two.")
    assert sgl.function(name="other")(pair.body).name == "other"


def test_arguments_are_checked_when_bound() -> None:
    """Unknown and doubled arguments are named at bind, missing ones at run."""
    with pytest.raises(sgl.InvalidPrimitive, match="third"):
        pair.bind(third=3)  # type: ignore[call-arg]
    with pytest.raises(sgl.InvalidPrimitive, match="multiple values"):
        pair.bind("a", first="b")  # type: ignore[misc]


async def test_missing_arguments_are_named_at_run() -> None:
    """run() says which one is missing before anything starts."""
    with pytest.raises(sgl.InvalidPrimitive, match="'first'"):
        await pair.bind().run()  # type: ignore[call-arg]


async def test_a_body_is_recorded_as_a_graph() -> None:
    """Streams in order, parents first; variables and joins stand as nodes."""

    @sgl.function
    async def program(s: sgl.ProgramState, topic: str) -> None:
        s += f"About {topic}:" + sgl.gen("x")
        group = s.fork(2)
        group += "more" + s["x"] + sgl.gen("y")
        await group.join("y")
        s += s["x"]

    graph = await record(program.bind(topic="bees"))
    assert [stream.path for stream in graph.streams] == ["0", "0.0", "0.1"]
    assert graph.streams[0].nodes == [
        ConstantText("About bees:"),
        Gen("x"),
        Fork(2),
        Join(2, "y"),
        Variable("x"),
    ]
    assert graph.streams[1].nodes == [ConstantText("more"), Variable("x", "0", 3), Gen("y")]


async def test_a_body_that_looks_at_values_has_no_graph() -> None:
    """Awaiting a variable, or using what a join collected, says so."""

    @sgl.function
    async def looks(s: sgl.ProgramState) -> None:
        s += sgl.gen("x")
        await s["x"]

    @sgl.function
    async def uses(s: sgl.ProgramState) -> None:
        group = s.fork(1)
        notes = await group.join("x")
        s += "".join(notes)

    for program in (looks, uses):
        with pytest.raises(NotRecordable):
            await record(program.bind())


def test_importing_the_package_is_cheap() -> None:
    """`import sgl_actors` pulls in nothing heavy, and takes under 50 ms (best of five)."""
    code = textwrap.dedent("""
        import sys, time
        begun = time.perf_counter()
        import sgl_actors
        print(time.perf_counter() - begun)
        assert not {"torch", "zmq", "rich", "asyncio", "msgspec"} & set(sys.modules)
    """)
    command = [sys.executable, "-c", code]
    times = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)
    ]
    assert min(times) < 0.05


def test_every_public_name_is_there_and_documented() -> None:
    """`__all__` is what the lazy table serves; each has a docstring; another name is an AttributeError."""
    for name in sgl.__all__:
        value = getattr(sgl, name)
        assert name == "__version__" or value.__doc__
    assert set(sgl.__all__) <= set(dir(sgl))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sgl.nonsense
