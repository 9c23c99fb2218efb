"""Functions that a model may call."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, cast

import msgspec
import pytest

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.tools import Call, ToolFailed, as_text, call_all, clip, tool
from sgl_actors.lang.typed import InvalidValue


class Place(msgspec.Struct):
    x: int


@tool
def search(query: str, limit: int = 5, kind: Literal["web", "news"] = "web") -> list[str]:
    """Look something up.

    The results are titles.

    Args:
        query: what to look for,
            in plain words.
        limit (int): titles at most.

    Returns:
        Titles.
    """
    return [f"{kind} {query} {number}" for number in range(limit)]


@tool(name="sleep", timeout=0.01)
async def slow() -> None:
    """Never ends."""
    await asyncio.Event().wait()


@tool
async def fail(message: str) -> None:
    """Raise."""
    raise LookupError(message)


def test_a_tool_is_what_its_signature_and_docstring_say() -> None:
    """Name, description, parameters with their types, defaults and descriptions; calling it calls the function."""
    assert search.name == "search"
    assert search.description == "Look something up. The results are titles."
    assert search.signature == "search(query: str, limit: int = 5, kind: Literal['web', 'news'] = 'web')"
    properties = search.schema["properties"]
    assert properties["query"]["description"] == "what to look for, in plain words."
    assert properties["limit"]["description"] == "titles at most."
    assert properties["kind"]["enum"] == ["news", "web"] or properties["kind"]["enum"] == ["web", "news"]
    assert search.schema["required"] == ["query"]
    assert search.schema["type"] == "object"
    assert search("bees", limit=1) == ["web bees 0"]


async def test_arguments_are_checked() -> None:
    """A mapping, JSON, or the args struct; what is wrong is named, and what the call looks like."""
    assert await search.call({"query": "a", "limit": 1}) == ["web a 0"]
    assert await search.call('{"query":"a","limit":1,"kind":"news"}') == ["news a 0"]
    assert await search.call(search.args(query="a", limit=1)) == ["web a 0"]
    for wrong, why in [
        ({}, "missing required field `query`"),
        ({"query": 3}, "Expected `str`, got `int`"),
        ({"query": "a", "order": "x"}, "unknown field `order`"),
        ('{"query"', "truncated"),
        ({"query": "a", "kind": "old"}, "kind"),
        (None, "Expected `object`"),
    ]:
        with pytest.raises(InvalidValue, match=why) as caught:
            await search.call(wrong)
        assert "search(query: str, limit" in str(caught.value)


async def test_what_a_tool_raises_is_its_cause() -> None:
    """`ToolFailed` names the tool, the class and the text."""
    with pytest.raises(ToolFailed, match="tool fail raised LookupError: nothing") as caught:
        await fail.call({"message": "nothing"})
    assert isinstance(caught.value.__cause__, LookupError)


async def test_a_call_ends_with_its_time() -> None:
    """The tool's own timeout, or that of the call; a TimeoutError of the function itself is no such thing."""

    @tool
    def late() -> None:
        """Raise what a timeout raises."""
        raise TimeoutError("of its own")

    with pytest.raises(ToolFailed, match=r"sleep: no result within 0\.01 s"):
        await slow.call({})
    with pytest.raises(ToolFailed, match="raised TimeoutError: of its own"):
        await late.call({})


async def test_plain_functions_run_beside_the_loop() -> None:
    """In a thread: several that block go on at the same time."""
    meeting = threading.Barrier(3, timeout=10)

    @tool
    def meet(number: int) -> int:
        """Wait for the others."""
        meeting.wait()
        return number

    found = await call_all([meet], [Call("meet", {"number": n}) for n in range(3)])
    assert [one.value for one in found] == [0, 1, 2]


async def test_what_goes_wrong_with_a_call_is_its_observation() -> None:
    """The others are made all the same, and all come in their order."""
    calls = [
        Call("fail", {"message": "no"}),
        Call("search", {"query": "a", "limit": 2}),
        Call("sleep"),
        Call("nosuch"),
        Call("search", "{}"),
    ]
    found = await call_all([search, slow, fail], calls)
    assert [one.call for one in found] == calls
    assert [type(one.error) for one in found] == [
        ToolFailed,
        type(None),
        ToolFailed,
        InvalidValue,
        InvalidValue,
    ]
    assert found[1].text == '["web a 0","web a 1"]'
    assert found[0].text == "Error: tool fail raised LookupError: no"
    assert found[3].text == "Error: there is no tool 'nosuch'; there are search, sleep, fail"


async def test_at_most_so_many_calls_at_the_same_time() -> None:
    """`max_concurrency` bounds them."""
    running = most = 0

    @tool
    async def count() -> None:
        """Count."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1

    await call_all([count], [Call("count")] * 10, max_concurrency=3)
    assert most == 3


async def test_cancelling_cancels_the_calls() -> None:
    """No call goes on when nobody waits for it."""
    begun, ended = asyncio.Event(), asyncio.Event()

    @tool
    async def wait() -> None:
        """Wait."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.ensure_future(call_all([wait], [Call("wait")]))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


def test_results_become_text() -> None:
    """Text as it is, data as JSON; half a surrogate pair, which no prompt can hold, becomes a question mark."""

    @dataclass
    class Point:
        x: int

    class Made(msgspec.Struct):
        day: date

    assert as_text("t", "plain") == "plain"
    assert as_text("t", None) == "null"
    assert as_text("t", [Point(1), Made(date(2026, 1, 2))]) == '[{"x":1},{"day":"2026-01-02"}]'
    assert as_text("t", "a\ud800b") == "a?b"
    for value in (object(), {"a": lambda: 1}, ["\ud800"]):
        with pytest.raises(ToolFailed, match="no JSON"):
            as_text("t", value)


@pytest.mark.parametrize("most", [1, 10, 40, 99, 100, 101])
def test_long_texts_lose_their_middle(most: int) -> None:
    """The result is never longer than allowed; beginning and end stay."""
    text = "".join(chr(97 + n % 26) for n in range(100))
    clipped = clip(text, most)
    assert len(clipped) <= most
    assert clipped == text if most >= 100 else "…" in clipped
    if 60 < most < 100:
        assert clipped[:5] == text[:5]
        assert clipped[-5:] == text[-5:]


async def test_a_long_observation_is_clipped() -> None:
    """`max_text` bounds what the model gets to see, not the value."""
    (found,) = await call_all([search], [Call("search", {"query": "a", "limit": 900})], max_text=80)
    assert len(found.text) == 80
    assert len(found.value) == 900


def test_types_of_parameters_may_be_structures() -> None:
    """What the schema of the parameters refers to stands beside them."""

    @tool
    def move(to: Place, by: list[Place]) -> int:
        """Move."""
        return to.x + sum(place.x for place in by)

    assert set(move.schema["properties"]) == {"to", "by"}
    assert set(move.schema["$defs"]) == {"Place"}
    assert asyncio.run(move.call('{"to":{"x":1},"by":[{"x":2}]}')) == 3


def test_mutable_defaults_are_not_shared() -> None:
    """Each call gets a copy."""

    @tool
    def collect(items: list[int] = [1]) -> list[int]:  # noqa: B006 - this is what is tested
        """Add one."""
        items.append(2)
        return items

    assert asyncio.run(collect.call({})) == asyncio.run(collect.call({})) == [1, 2]
    assert collect.signature == "collect(items: list[int] = …)"


def test_what_cannot_be_a_tool_is_refused() -> None:
    """The message says what is wrong with which parameter."""

    def untyped(value) -> None: ...  # type: ignore[no-untyped-def]

    def several(*values: int) -> None: ...

    def opaque(value: object) -> None: ...

    def unknown(value: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, message in [
        (untyped, "parameter value has no type"),
        (several, "given by name"),
        (opaque, "schema"),
        (unknown, "NoSuchType"),
    ]:
        with pytest.raises(InvalidPrimitive, match=message):
            tool(cast("Any", function))
    for name in ("finish", "no spaces", ""):
        with pytest.raises(InvalidPrimitive, match="a name is"):
            tool(name=name or " ")(search.function)


async def test_two_tools_need_two_names() -> None:
    """And a function is no tool before it is made one."""
    with pytest.raises(InvalidPrimitive, match="two tools are called 'search'"):
        await call_all([search, search], [])
    with pytest.raises(InvalidPrimitive, match="@tool"):
        await call_all([search.function], [])  # type: ignore[list-item]


def test_types_of_calls_are_kept() -> None:
    """A tool is called as its function is, also for a type checker."""
    titles: list[str] = search("a")
    values: Any = search.function("a")
    assert titles == values
