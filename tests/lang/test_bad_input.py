"""Programs that are wrong: each ends with a typed error that names the program, the variable and the line of this file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sgl_actors as sgl
from sgl_actors.errors import DeadlineExceeded, Overloaded, SglActorsError
from sgl_actors.lang.function import Function
from tests.programs.fakes import FakeClient, backend_of

SOURCE = Path(__file__).read_text("utf-8").splitlines()


def place(mark: str) -> str:
    """FILE:LINE of the line here that ends with the comment `mark`."""
    (number,) = [number for number, line in enumerate(SOURCE, 1) if line.endswith(f"  # <- {mark}")]
    return f"{__file__}:{number}"


async def failure_of(
    program: Function[Any], kind: type[SglActorsError], script: Any = (), **options: Any
) -> Any:
    """The error that a run of `program` against a mock ends with; it has to be exactly of that `kind`."""
    async with asyncio.timeout(20):
        with pytest.raises(kind) as caught:
            await program.run(backend=sgl.Mock([] if script == () else script), **options)
    assert type(caught.value) is kind
    return caught.value


def check(error: SglActorsError, program: str, mark: str, *words: str) -> None:
    """Its message names the program, the line of `mark`, and all `words`."""
    for part in (f"program {program!r}", place(mark), *words):
        assert part in error.message


# -- variables --------------------------------------------------------------------------------------------


async def test_an_unknown_variable_that_is_awaited() -> None:
    """Nothing defines it, so nothing is waited for; the message lists what there is."""

    @sgl.function
    async def misread(s: sgl.ProgramState) -> None:
        s += "Colour: " + sgl.gen("colour")
        await s["color"]  # <- awaited

    error = await failure_of(misread, sgl.UnknownVariable, ["red"])
    check(error, "misread", "awaited", "'color'", "it has: colour")


async def test_an_unknown_variable_in_a_prompt() -> None:
    """It surfaces at `run()`, where the body has gone on."""

    @sgl.function
    async def misquote(s: sgl.ProgramState) -> None:
        s += "Expand: " + s["topic"]  # <- quoted
        s += sgl.gen("text")

    error = await failure_of(misquote, sgl.UnknownVariable)
    check(error, "misquote", "quoted", "'topic'")


@pytest.mark.parametrize(
    "use", [bool, str, list, len, lambda ref: ref == "x", lambda ref: f"{ref}", lambda ref: "x" in ref]
)
async def test_a_variable_that_is_used_before_it_has_a_value(use: Callable[[Any], Any]) -> None:
    """A Ref is no value: what would be silently false raises instead."""

    @sgl.function
    async def hasty(s: sgl.ProgramState) -> None:
        s += sgl.gen("mood")
        use(s["mood"])  # <- used

    error = await failure_of(hasty, sgl.UnresolvedVariable, ["calm"])
    assert 's["mood"]' in error.message
    assert __file__ in error.message


async def test_the_line_of_a_comparison_is_named() -> None:
    """The way out stands in the message."""

    @sgl.function
    async def compares(s: sgl.ProgramState) -> None:
        s += sgl.gen("mood")
        if s["mood"] == "calm":  # <- compared
            s += "."

    error = await failure_of(compares, sgl.UnresolvedVariable, ["calm"])
    check(error, "compares", "compared", 'await s["mood"]')


async def test_a_variable_that_branches_overwrite() -> None:
    """A join without a name would make a list of what is a value now: it says so, and names the variable."""

    @sgl.function
    async def overwrites(s: sgl.ProgramState) -> None:
        s["note"] = "mine"
        forks = s.fork(2)
        forks += sgl.gen("note")
        forks.join()  # <- overwritten

    error = await failure_of(overwrites, sgl.InvalidPrimitive, ["a", "b"])
    check(error, "overwrites", "overwritten", "'note'", "join('note')")


async def test_joining_by_name_overwrites_on_purpose() -> None:
    """Who names the variable gets the branches' values."""

    @sgl.function
    async def gathers(s: sgl.ProgramState) -> None:
        s["note"] = "mine"
        forks = s.fork(2)
        forks += sgl.gen("note")
        forks.join("note")

    assert (await gathers.run(backend=sgl.Mock(["a", "b"])))["note"] == ["a", "b"]


@pytest.mark.parametrize("name", ["", 3, None])
async def test_a_variable_without_a_name(name: Any) -> None:
    """Names are non-empty strings."""

    @sgl.function
    async def nameless(s: sgl.ProgramState) -> None:
        s[name] = 1  # <- nameless

    check(await failure_of(nameless, sgl.InvalidPrimitive), "nameless", "nameless", repr(name))


async def test_a_variable_that_is_no_plain_data() -> None:
    """Variables travel."""

    @sgl.function
    async def stores(s: sgl.ProgramState) -> None:
        s["thing"] = object()  # <- stored

    check(await failure_of(stores, sgl.InvalidPrimitive), "stores", "stored", "'thing'", "plain data")


# -- primitives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [None, 3, ["text"], object()])
async def test_what_is_no_part_of_a_prompt(what: Any) -> None:
    """`s += None` is a mistake, not an empty text."""

    @sgl.function
    async def adds(s: sgl.ProgramState) -> None:
        s += what  # <- added

    check(await failure_of(adds, sgl.InvalidPrimitive), "adds", "added", type(what).__name__)


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ([], "empty"),
        (["yes", ""], "empty"),
        (["yes", "yes"], "equal"),
        ("yes", "list of strings"),
        (None, "empty"),
    ],
)
async def test_choices_that_are_none(choices: Any, why: str) -> None:
    """Empty choices, and two that are equal, have no meaning."""

    @sgl.function
    async def chooses(s: sgl.ProgramState) -> None:
        s += "Answer: " + sgl.select("answer", choices)  # <- chosen

    error = await failure_of(chooses, sgl.InvalidPrimitive)
    check(error, "chooses", "chosen", "select('answer')", why)
    assert error.param == "choices"


@pytest.mark.parametrize("regex", ["(", "[a", "a{2,1}", "(?<=a)b", r"\1"])
async def test_a_regex_that_does_not_compile(regex: str) -> None:
    """It is refused where it is written, before anything runs."""

    @sgl.function
    async def constrains(s: sgl.ProgramState) -> None:
        s += sgl.gen("code", regex=regex)  # <- regex

    error = await failure_of(constrains, sgl.InvalidPrimitive)
    check(error, "constrains", "regex", "gen('code')")
    assert error.param == "regex"


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"type": "array", "items": 3}, {"$ref": "#/nowhere"}, "{", "[1]"]
)
async def test_a_schema_that_is_none(schema: Any) -> None:
    """It is refused where it is written, before anything runs."""

    @sgl.function
    async def shapes(s: sgl.ProgramState) -> None:
        s += sgl.gen("city", json_schema=schema)  # <- schema

    error = await failure_of(shapes, sgl.InvalidPrimitive)
    check(error, "shapes", "schema", "gen('city')")
    assert error.param == "json_schema"


async def test_a_type_that_has_no_schema() -> None:
    """Nothing is known of an `object`."""

    @sgl.function
    async def types(s: sgl.ProgramState) -> None:
        s += sgl.gen("thing", type=object)  # <- type

    check(await failure_of(types, sgl.InvalidPrimitive), "types", "type", "gen('thing')")


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", float("nan")), ("max_tokens", -1), ("n", 0), ("top_p", 2.0), ("stop", [""])],
)
async def test_an_argument_out_of_its_range(name: str, value: Any) -> None:
    """`param` names it."""

    @sgl.function
    async def samples(s: sgl.ProgramState) -> None:
        s += sgl.gen("text", **{name: value})  # <- argument

    error = await failure_of(samples, sgl.InvalidPrimitive)
    check(error, "samples", "argument", "gen('text')", name)
    assert error.param == name


async def test_two_shapes_at_once() -> None:
    """A gen has one shape."""

    @sgl.function
    async def both(s: sgl.ProgramState) -> None:
        s += sgl.gen("x", regex="a", json_schema={})  # <- both

    check(await failure_of(both, sgl.InvalidPrimitive), "both", "both", "gen('x')", "regex and json_schema")


async def test_a_turn_inside_a_turn() -> None:
    """As an expression, and where it is added to an open turn."""

    @sgl.function
    async def nests(s: sgl.ProgramState) -> None:
        s += sgl.user("a" + sgl.assistant("b"))  # <- nested

    @sgl.function
    async def opens(s: sgl.ProgramState) -> None:
        with s.user():
            s += sgl.system("b")  # <- opened

    check(await failure_of(nests, sgl.InvalidPrimitive), "nests", "nested", "user")
    check(await failure_of(opens, sgl.InvalidPrimitive), "opens", "opened", "system turn", "user turn")


async def test_a_turn_that_is_closed_but_not_open() -> None:
    """Ends belong to beginnings."""

    @sgl.function
    async def closes(s: sgl.ProgramState) -> None:
        s += sgl.user_begin() + "a"
        s += sgl.assistant_end()  # <- closed

    check(await failure_of(closes, sgl.InvalidPrimitive), "closes", "closed", "assistant turn", "user turn")


async def test_what_the_model_wrote_is_no_value() -> None:
    """A text that is no value of its type fails the gen."""

    @sgl.function
    async def counts(s: sgl.ProgramState) -> None:
        s += "How many? " + sgl.gen_int("number")  # <- number

    check(await failure_of(counts, sgl.InvalidValue, ["many"]), "counts", "number", "'number'", "'many'")


async def test_a_model_without_eyes() -> None:
    """An image fails the next gen of a text-only model, before anything is asked."""

    @sgl.function
    async def looks(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(bytes.fromhex("89504e470d0a1a0a")) + "What is it?")
        s += sgl.assistant(sgl.gen("answer"))  # <- looked

    client = FakeClient()
    with pytest.raises(sgl.UnsupportedMedia) as caught:
        await looks.run(backend=backend_of(client))
    check(caught.value, "looks", "looked", "'answer'", "no images")
    assert client.requests == []


# -- branches ---------------------------------------------------------------------------------------------


async def test_the_join_of_a_branch_that_failed() -> None:
    """The error names the branch and its variable, and the line of what failed; the cause is the node's own error."""

    @sgl.function
    async def joins(s: sgl.ProgramState) -> None:
        forks = s.fork(2)
        for f in forks:
            f += "Note: " + sgl.gen("note")  # <- failed
        await forks.join("note")

    error = await failure_of(joins, sgl.PrimitiveFailed, ["fine", Overloaded("the queue is full")])
    check(error, "joins", "failed", "branch 0.1", "'note'", "the queue is full")
    assert isinstance(error.__cause__, Overloaded)


async def test_a_join_of_what_no_branch_has() -> None:
    """A name that no branch knows is said at the join."""

    @sgl.function
    async def joins(s: sgl.ProgramState) -> None:
        forks = s.fork(2)
        forks += sgl.gen("note")
        await forks.join("notes")  # <- misjoined

    check(await failure_of(joins, sgl.UnknownVariable, ["a", "b"]), "joins", "misjoined", "'notes'", "0.0")


async def test_a_branch_that_has_been_joined() -> None:
    """It takes nothing more."""

    @sgl.function
    async def goes_on(s: sgl.ProgramState) -> None:
        forks = s.fork(2)
        forks += sgl.gen("note")
        forks.join("note")
        forks += "more"  # <- joined

    check(await failure_of(goes_on, sgl.StreamEnded, ["a", "b"]), "goes_on", "joined", "branch 0.0")


async def test_a_branch_that_was_cancelled() -> None:
    """What it would have said cannot be read."""

    async def never(_: object) -> None:
        await asyncio.Event().wait()

    @sgl.function
    async def gives_up(s: sgl.ProgramState) -> None:
        branch = s.fork()[0]
        branch += sgl.gen("note")
        branch.cancel("too late")
        await branch["note"]  # <- cancelled

    check(
        await failure_of(gives_up, sgl.BranchCancelled, never),
        "gives_up",
        "cancelled",
        "branch 0.0",
        "too late",
    )


# -- bodies -----------------------------------------------------------------------------------------------


async def test_a_body_that_raises() -> None:
    """What it raised is the cause; the line is where it came from."""

    @sgl.function
    async def divides(s: sgl.ProgramState) -> None:
        s += "Half of it: "
        1 / 0  # noqa: B018  # <- raised

    error = await failure_of(divides, sgl.BodyFailed)
    check(error, "divides", "raised", "ZeroDivisionError", "'Half of it: '")
    assert isinstance(error.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("budget", [sgl.Budget(calls=3), sgl.Budget(tokens=6)])
async def test_a_body_that_never_ends(budget: sgl.Budget) -> None:
    """A budget of calls or tokens ends it, at the gen that would have gone beyond."""

    @sgl.function
    async def circles(s: sgl.ProgramState) -> None:
        while True:
            s += "Again: " + sgl.gen("again")  # <- again
            await s["again"]

    error = await failure_of(circles, sgl.BudgetExceeded, lambda call: "and again", budget=budget)
    check(error, "circles", "again", "'again'", "budget of")


async def test_a_body_that_waits_for_ever() -> None:
    """A budget of seconds ends it, whatever it waits for."""

    @sgl.function
    async def sleeps(s: sgl.ProgramState) -> None:
        s += "Zzz"
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        with pytest.raises((sgl.BudgetExceeded, DeadlineExceeded), match="program 'sleeps'"):
            await sleeps.run(backend=sgl.Mock([]), budget=sgl.Budget(seconds=0.05))


async def test_a_body_that_adds_for_ever() -> None:
    """One that never waits cannot grow without bound: it ends where it adds too much."""

    @sgl.function
    async def floods(s: sgl.ProgramState) -> None:
        while True:
            s += "more "  # <- flooded

    check(await failure_of(floods, sgl.BudgetExceeded), "floods", "flooded")


async def test_a_program_that_is_called_wrongly() -> None:
    """Arguments that its body does not take are refused before it runs."""

    @sgl.function
    async def greets(s: sgl.ProgramState, name: str) -> None:
        s += name

    with pytest.raises(sgl.InvalidPrimitive, match=r"greets: .*'nam'"):
        await greets.run(nam="Ada", backend=sgl.Mock([]))


def test_a_program_without_a_state() -> None:
    """The first parameter is `s`."""
    with pytest.raises(sgl.InvalidPrimitive, match=r"greets: the first parameter of a program is `s`"):

        @sgl.function
        async def greets(state: sgl.ProgramState) -> None: ...


async def test_a_mock_that_was_not_told() -> None:
    """A script without an answer names the call."""

    @sgl.function
    async def asks(s: sgl.ProgramState) -> None:
        s += "Name: " + sgl.gen("name")  # <- asked

    check(await failure_of(asks, sgl.UnscriptedCall), "asks", "asked", "'name'")


async def test_tries_that_all_fail() -> None:
    """A pattern without a valid candidate says why each was refused."""

    @sgl.function
    async def retries(s: sgl.ProgramState) -> None:
        s += "An even number: "
        await sgl.retry_until(s, sgl.gen_int("number"), lambda n: n % 2 == 0, tries=2)  # <- retried

    error = await failure_of(retries, sgl.NoValidResult, ["3", "5"])
    check(error, "retries", "retried", "retry_until", "3", "5")
    assert [candidate.value for candidate in error.candidates] == [3, 5]
