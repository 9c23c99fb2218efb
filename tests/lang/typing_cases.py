"""What a type checker knows of a program: read by `test_typing_cases`, never run.

A class, and a `list[…]` or `dict[…]` of them, is a `type[T]` to a checker, so `gen(type=…)` has a type by itself. A union, an
optional or a `Literal` is none: there the caller states what the slot is of, and the checker takes the word for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, assert_type

import msgspec

import sgl_actors as sgl
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.typed import Adapter, adapter


class Person(msgspec.Struct):
    name: str
    age: int


@dataclass
class Point:
    x: float


class Film(TypedDict):
    title: str


class Span(NamedTuple):
    start: int


class Colour(enum.Enum):
    RED = "red"


@sgl.tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@sgl.tool
async def weather(city: str) -> str:
    """Look outside."""
    return city


slot = sgl.gen("p", type=Person)
assert_type(slot, sgl.Slot[Person])
assert_type(sgl.gen("x"), sgl.Slot[str])
assert_type(sgl.gen("x", max_tokens=16, stop="\n", temperature=0.0), sgl.Slot[str])
assert_type(sgl.gen("x", regex="[a-z]+"), sgl.Slot[str])
assert_type(sgl.gen("x", constraint=sgl.regex("[a-z]+") + sgl.choice("a", "b")), sgl.Slot[str])
assert_type(sgl.gen("n", type=int), sgl.Slot[int])
assert_type(sgl.gen("n", 16, type=int, temperature=0.0), sgl.Slot[int])
assert_type(sgl.gen("b", type=bool), sgl.Slot[bool])
assert_type(sgl.gen("c", type=Colour), sgl.Slot[Colour])
assert_type(sgl.gen("d", type=Point), sgl.Slot[Point])
assert_type(sgl.gen("f", type=Film), sgl.Slot[Film])
assert_type(sgl.gen("s", type=Span), sgl.Slot[Span])
assert_type(sgl.gen("l", type=list[Person]), sgl.Slot[list[Person]])
assert_type(sgl.gen("m", type=dict[str, list[Point]]), sgl.Slot[dict[str, list[Point]]])
assert_type(sgl.gen("t", type=tuple[int, str]), sgl.Slot[tuple[int, str]])
assert_type(sgl.gen("c", tools=[add, weather]), sgl.Slot[list[sgl.Call]])
assert_type(sgl.gen("c", 64, tools=(add, weather), temperature=0.0), sgl.Slot[list[sgl.Call]])
assert_type(sgl.gen("c", tools=[add], n=2), sgl.Slot[list[list[sgl.Call]]])
assert_type(sgl.gen_int("i"), sgl.Slot[int])
assert_type(sgl.gen_string("i"), sgl.Slot[str])
assert_type(sgl.select("i", choices=["a", "b"]), sgl.Slot[str])

answer: sgl.Slot[Literal["yes", "no"]] = sgl.gen("answer", type=Literal["yes", "no"])
perhaps: sgl.Slot[Person | None] = sgl.gen("perhaps", type=Person | None)

assert_type(adapter(Person), Adapter[Person])
assert_type(adapter(list[Person]), Adapter[list[Person]])
assert_type(adapter(Person | None), Adapter[Person | None])
assert_type(adapter(Literal["yes", "no"]), Adapter[Literal["yes", "no"]])
assert_type(adapter(Person).decode("{}"), Person)
assert_type(adapter(Person).constraint, Constraint | None)

template = (
    "Name: " + sgl.regex("[A-Z][a-z]+").named("name") + ", " + sgl.optional(sgl.json(Person).named("p"))
)
assert_type(template, sgl.Pattern)
assert_type(template | "none", sgl.Pattern)
assert_type(sgl.repeat(template, min=1, separator="\n"), sgl.Pattern)
assert_type(template.captures("Name: Ada, "), dict[str, Any])


@sgl.function
async def describe(s: sgl.ProgramState, who: str) -> Person:
    """A typed body."""
    s += "Describe " + who + " as JSON: " + slot
    s += sgl.user("Is that right?") + sgl.assistant(answer)
    assert_type(await s[slot], Person)
    assert_type((await s[slot]).age, int)
    assert_type(await s[answer], Literal["yes", "no"])
    assert_type(await s[perhaps], Person | None)
    assert_type(await s["p"], Any)
    assert_type(s[slot], sgl.Ref[Person])
    return await s[slot]


async def main() -> None:
    """A caller."""
    state = await describe.run(who="Ada")
    assert_type(state, sgl.FinishedState)
    assert_type(state[slot], Person)
    assert_type(state[answer], Literal["yes", "no"])
    assert_type(state["p"], Any)
    assert_type(state[slot].name.upper(), str)
