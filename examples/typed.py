"""Typed results: a number, one of some words, a list, a date and a whole sentence of constraints, as Python values."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Literal

import msgspec

import sgl_actors as sgl

SOLVED = """On 2023-01-09 Bo, who is 51, flew from Rome to Bonn. It cost 90 crowns.
Age: 51\nWay: plane\nCities: ["Rome", "Bonn"]\nDate: 2023-01-09\nFare: 90 crowns.\n\n"""
TEXT = "On 2024-05-03 Ada, who is 36, took the ferry from Oslo to Kiel. It cost 40 euros."

Way = Literal["plane", "ferry"]
City = Annotated[str, msgspec.Meta(max_length=16)]


@sgl.function
async def describe(s: sgl.ProgramState, text: str) -> None:
    s += SOLVED + text
    s += "\nAge: " + sgl.gen_int("age", max_tokens=3)
    s += "\nWay: " + sgl.gen("way", type=Way)
    s += "\nCities: " + sgl.gen("cities", max_tokens=32, type=list[City])
    s += "\nDate: " + sgl.gen("date", max_tokens=16, type=date)
    fare = sgl.integer().named("fare") + " " + sgl.choice("euros", "crowns").named("currency")
    s += "\nFare: " + sgl.gen(max_tokens=12, constraint=fare + sgl.optional(" each") + ".")


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default=TEXT)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.connect(options.url)
    state = await describe.bind(options.text).run(temperature=0)
    print(options.text)
    for name, value in state.variables.items():
        print(f"  {name:<9} {value!r}")
    print(f"She was born in {state['date'].year - state['age']} or the year before.")


if __name__ == "__main__":
    asyncio.run(main())
