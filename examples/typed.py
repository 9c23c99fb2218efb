"""Typed results: a number, one of some words, a list, a date and a whole sentence of constraints, as Python values."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Literal

import msgspec

import sgl_actors as sgl

Mood = Literal["calm", "angry", "glad"]
Few = Annotated[list[Annotated[str, msgspec.Meta(max_length=16)]], msgspec.Meta(min_length=2, max_length=3)]


@sgl.function
async def describe(s: sgl.ProgramState, text: str) -> None:
    s += f"Text: {text}\n"
    s += "How many people are in it? " + sgl.gen_int("people", max_tokens=3) + "\n"
    s += "Their mood: " + sgl.gen("mood", type=Mood) + "\n"
    s += "What they have with them, as JSON: " + sgl.gen("things", max_tokens=48, type=Few) + "\n"
    s += "The date, as YYYY-MM-DD: " + sgl.gen("date", type=date, max_tokens=16) + "\n"
    price = sgl.regex(r"[1-9][0-9]?").named("price") + " " + sgl.choice("euros", "dollars").named("currency")
    s += "The fare was " + sgl.gen(constraint=price + sgl.optional(" each") + ".", max_tokens=12)


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?")
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    text = "On 3 May 2024 two friends, glad to be out, took the ferry with a dog and a kite. It cost them 4 euros."
    state = await describe.bind(options.text or text).run(temperature=0)
    print(options.text or text)
    for name, value in state.variables.items():
        print(f"  {name:<9} {value!r}")
    assert isinstance(state["people"], int)
    print(f"  a weekday {state['date']:%A}")


if __name__ == "__main__":
    asyncio.run(main())
