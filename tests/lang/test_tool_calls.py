"""`gen(tools=…)`: what the model is asked for, and what its text becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_actors as sgl
from sgl_actors.actors.programs.journal_writer import writer_of
from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.graph import Graph
from sgl_actors.lang.ir import Gen
from sgl_actors.lang.shape import decoder_of
from sgl_actors.lang.tool_calls import MAX_CALLS
from sgl_actors.lang.tools import Call, Tool
from sgl_actors.lang.typed import InvalidValue


class Place(msgspec.Struct):
    city: str


@sgl.tool
def weather(place: Place, unit: Literal["C", "F"] = "C") -> str:
    """The weather in a city.

    Args:
        place: where.
    """
    return f"{place.city}: 20 {unit}"


@sgl.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def other_place() -> Tool[..., Any]:
    """A tool whose parameter is of another class of the same name."""

    class Place(msgspec.Struct):
        x: int

    def move(to: Any) -> None:
        """Move."""

    move.__annotations__["to"] = Place
    return sgl.tool(move)


TOOLS: list[Tool[..., Any]] = [weather, add]
GOOD: list[dict[str, Any]] = [
    {"tool": "add", "arguments": {"a": 1, "b": 2}},
    {"tool": "weather", "arguments": {"place": {"city": "Lima"}}},
]


def node(tools: Any = TOOLS, **arguments: Any) -> Gen:
    (found,) = sgl.gen("calls", tools=tools, **arguments).nodes
    assert isinstance(found, Gen)
    return found


def read(text: str, tools: Any = TOOLS) -> Any:
    decode = decoder_of(node(tools).adapter)
    assert decode is not None
    return decode(text)


def test_the_tools_are_told_of_in_the_form_of_the_openai_api() -> None:
    """Name, description and JSON schema of the parameters of each, in order."""
    told = json.loads(node().tools)
    assert [one["type"] for one in told] == ["function", "function"]
    assert [one["function"]["name"] for one in told] == ["weather", "add"]
    assert told[0]["function"]["description"] == "The weather in a city."
    assert told[0]["function"]["parameters"] == weather.schema
    assert node().name == "calls"
    assert Gen("x").tools == ""


@pytest.mark.parametrize(
    ("calls", "allowed"),
    [
        (GOOD, True),
        (GOOD[:1] * MAX_CALLS, True),
        ([{"tool": "weather", "arguments": {"place": {"city": "a"}, "unit": "F"}}], True),
        ([], False),
        (GOOD[:1] * (MAX_CALLS + 1), False),
        ([{"tool": "sub", "arguments": {"a": 1, "b": 2}}], False),
        ([{"tool": "add", "arguments": {"place": {"city": "Lima"}}}], False),
        ([{"tool": "add", "arguments": {"a": 1}}], False),
        ([{"tool": "add", "arguments": {"a": "1", "b": 2}}], False),
        ([{"tool": "weather", "arguments": {"place": {"city": "a"}, "unit": "K"}}], False),
        ([{"tool": "add"}], False),
        ({"tool": "add", "arguments": {"a": 1, "b": 2}}, False),
    ],
)
def test_the_constraint_allows_calls_of_these_tools_and_nothing_else(calls: Any, allowed: bool) -> None:
    """A node of ours can write no other text, in the form of `json.dumps`."""
    constraint = node().constraint
    assert constraint is not None
    assert constraint.kind == JSON_SCHEMA
    assert bytewise.accepts(constraint, json.dumps(calls).encode()) is allowed


def test_classes_of_one_name_are_kept_apart() -> None:
    """Two tools may have parameters of different classes called `Place`."""
    constraint = node([weather, other_place()]).constraint
    assert constraint is not None
    for name, value, allowed in [
        ("weather", {"place": {"city": "a"}}, True),
        ("move", {"to": {"x": 1}}, True),
        ("weather", {"place": {"x": 1}}, False),
        ("move", {"to": {"city": "a"}}, False),
    ]:
        text = json.dumps([{"tool": name, "arguments": value}])
        assert bytewise.accepts(constraint, text.encode()) is allowed


def test_a_text_becomes_calls() -> None:
    """Arguments stay as the model wrote them; white space and the order of keys do not matter."""
    assert read(json.dumps(GOOD)) == [Call(one["tool"], one["arguments"]) for one in GOOD]
    assert read(' [{"arguments":{"b":2,"a":1},\n"tool":"add"}]') == [Call("add", {"a": 1, "b": 2})]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "no tool is called"),
        ("I cannot.", "JSON is malformed"),
        ('"add"', "Expected `array`"),
        ("[1]", r"\$\[0\]: a call is"),
        ('[{"tool":"add","arguments":{"a":1,"b":2},"id":3}]', r"\$\[0\]: a call is"),
        ('[{"tool":"sub","arguments":{}}]', r"\$\[0\]\.tool: there is no tool 'sub'; there are weather, add"),
        (
            '[{"tool":"add","arguments":{"a":1,"b":2}},{"tool":"add","arguments":{"a":1,"b":"2"}}]',
            r"\$\[1\]\.arguments\.b: tool add: Expected `int`, got `str`; it is called as add\(a: int, b: int\)",
        ),
        (
            '[{"tool":"weather","arguments":{"place":{"city":7}}}]',
            r"\$\[0\]\.arguments\.place\.city: tool weather: Expected `str`",
        ),
        ('[{"tool":"weather","arguments":{}}]', "tool weather: Object missing required field `place`"),
        ('[{"tool":"add","arguments":{"a":1,"b":2,"c":3}}]', "tool add: Object contains unknown field `c`"),
        ('[{"tool": "add", "argum', "give it more max_tokens"),
    ],
)
def test_a_text_that_is_no_calls_is_refused(text: str, why: str) -> None:
    """The error names the tool and the field, or says what a call looks like."""
    with pytest.raises(InvalidValue, match=why):
        read(text)


@given(
    st.text(max_size=40)
    | st.recursive(st.none() | st.integers() | st.text(max_size=4), st.lists).map(json.dumps)
)
def test_any_text_is_calls_or_an_invalid_value(text: str) -> None:
    """Whatever a model writes, nothing else is raised."""
    with pytest.raises(InvalidValue):
        read(text)


def test_tools_made_anew_are_the_same_to_a_gen() -> None:
    """A body may make its tools: their gens have one constraint and one adapter, run after run."""

    def made() -> Tool[..., Any]:
        @sgl.tool
        def now(zone: str) -> str:
            """The time."""
            return zone

        return now

    assert node([made()]) == node([made()])
    assert node([made()]).adapter != node([made(), add]).adapter


@pytest.mark.parametrize("other", ["regex", "json_schema", "type", "constraint", "choices", "dtype"])
def test_tools_go_with_no_other_shape(other: str) -> None:
    """Both arguments are named."""
    values = {
        "regex": "a",
        "json_schema": {},
        "type": int,
        "constraint": sgl.regex("a"),
        "choices": ["a"],
        "dtype": int,
    }
    with pytest.raises(
        InvalidPrimitive, match=rf"gen\('calls'\): only one of {other} and tools can be given"
    ):
        node(**{other: values[other]})


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ([], "there are no tools"),
        (add, "tools is a list of tools"),
        ("add", "tools is a list of tools"),
        (3, "tools is a list of tools"),
        ([add, len], "decorate the function with @tool"),
        ([add, add], "two tools are called 'add'"),
    ],
)
def test_what_is_no_list_of_tools_is_refused(tools: Any, why: str) -> None:
    """At the gen, with its name."""
    with pytest.raises(InvalidPrimitive, match=rf"^gen\('calls'\): .*{why}") as raised:
        node(tools)
    assert raised.value.param == "tools"


def test_a_gen_with_tools_travels() -> None:
    """As msgpack it is the same again, and a gen of before there were tools is one without."""
    found = node(n=2, max_tokens=8)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Gen) == found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(["Gen", "x"]), type=Gen) == Gen("x")


@sgl.function
async def advise(s: sgl.ProgramState, question: str) -> Any:
    """A turn of calls, and one that reads what came of them."""
    calls = sgl.gen("calls", tools=TOOLS, max_tokens=200)
    s += sgl.user(question) + sgl.assistant(calls)
    found = await sgl.call_all(TOOLS, await s[calls])
    s += sgl.user("\n".join(one.text for one in found)) + sgl.assistant(sgl.gen("answer", max_tokens=20))
    return [one.text for one in found]


SCRIPT = {"calls": [GOOD], "answer": "Sunny."}


async def test_a_program_calls_tools() -> None:
    """The mock's plain data are calls; the text in the prompt is the array, and values of the finished state are calls, too."""
    mock = sgl.Mock(SCRIPT)
    state = await advise.run("Weather in Lima, and 1 + 2?", backend=mock)
    assert state.value == ["3", "Lima: 20 C"]
    assert state["calls"] == [Call("add", {"a": 1, "b": 2}), Call("weather", {"place": {"city": "Lima"}})]
    assert '[{"tool":"add","arguments":{"a":1,"b":2}},' in mock.calls[-1].prompt
    assert mock.calls[0].constraint == node().constraint


async def test_several_completions_are_lists_of_calls() -> None:
    """With `n` the variable is a list of lists of calls."""

    @sgl.function
    async def twice(s: sgl.ProgramState) -> Any:
        slot = sgl.gen("calls", tools=TOOLS, n=2)
        s += "Call: " + slot
        return await s[slot]

    state = await twice.run(backend=sgl.Mock({"calls": lambda _: GOOD[:1]}))
    assert state.value == [[Call("add", {"a": 1, "b": 2})]] * 2


async def test_wrong_arguments_fail_the_gen() -> None:
    """A model that calls by itself may be wrong; the program hears of it where it asked."""
    script = {"calls": [[{"tool": "add", "arguments": {"a": "one", "b": 2}}]], "answer": ""}
    with pytest.raises(
        InvalidValue,
        match=r"program 'advise', variable 'calls'.*\$\[0\]\.arguments\.a: tool add: Expected `int`",
    ):
        await advise.run("?", backend=sgl.Mock(script))


async def test_a_durable_program_reads_its_calls_again(tmp_path: Path) -> None:
    """A run that ended at its second gen goes on without asking for the calls again."""
    file = tmp_path / "journal.db"
    try:
        broken = sgl.Mock({"calls": [GOOD], "answer": OSError("gone")})
        with pytest.raises(sgl.PrimitiveFailed):
            await advise.run("?", backend=broken, durable=file, id="d", seed=1)
        mock = sgl.Mock({"answer": "Sunny."})
        state = await advise.run("?", backend=mock, durable=file, id="d", seed=1)
        assert (state.value, len(mock.calls)) == (["3", "Lima: 20 C"], 1)
    finally:
        writer_of(file).close()


async def test_a_recorded_graph_keeps_the_tools() -> None:
    """A program that is sent as a graph asks for the same calls."""

    @sgl.function
    async def still(s: sgl.ProgramState) -> None:
        s += "Call: " + sgl.gen("calls", tools=TOOLS)

    graph = (await still.trace()).graph
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(graph), type=Graph)
    assert [one for stream in sent.streams for one in stream.nodes if isinstance(one, Gen)] == [node()]
