"""API speculative execution: the paper's extraction of three fields, with one call per field and with one call for all.

    python -m benchmarks.api_speculation [--url http://127.0.0.1:30000] [--data DIR] [--prompts 30] [--check]

Thirty texts about cities, each behind four worked examples; the program writes `Name:`, `Country:`, `Population:` and has the model fill them in up to the end
of the line. It runs on a node behind `/v1/completions`, with speculation and without in turns, and on `/v1/chat/completions` of a model that
only writes whole turns. Texts are those of `json_decode` below --data ($SGL_ACTORS_DATA) if they are there. One JSON line per mode: tokens, calls, seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import sgl_actors as sgl
from benchmarks.harness import median, running, show, verdict

FIELDS = ("name", "country", "population")
RATIO = 2.5
"""Fewer input tokens, and fewer calls."""
SHOTS = (
    ("Lyon is the third-largest city of France. At the census of 2021 it had 522,250 inhabitants.", "Lyon", "France", "522,250"),
    ("With about 910,000 people, Naples is the regional capital of Campania, in the south of Italy.", "Naples", "Italy", "910,000"),
    ("Osaka lies on the island of Honshu. Some 2.75 million people live in what is Japan's third city.", "Osaka", "Japan", "2.75 million"),
    ("Founded in 1535, Lima is the capital of Peru and home to ten million.", "Lima", "Peru", "ten million"),
)  # fmt: skip
"""Worked examples: a text and its fields."""
CITIES = (
    ("Porto", "Portugal", "231,800"), ("Ghent", "Belgium", "265,000"), ("Turku", "Finland", "202,300"), ("Graz", "Austria", "298,500"),
    ("Bergen", "Norway", "291,900"), ("Split", "Croatia", "160,600"), ("Cork", "Ireland", "224,000"), ("Brno", "Czechia", "400,600"),
    ("Gdansk", "Poland", "486,000"), ("Malmo", "Sweden", "365,600"), ("Aarhus", "Denmark", "290,600"), ("Basel", "Switzerland", "175,400"),
    ("Utrecht", "the Netherlands", "368,000"), ("Bremen", "Germany", "569,400"), ("Varna", "Bulgaria", "311,000"), ("Cluj", "Romania", "286,600"),
    ("Patras", "Greece", "215,900"), ("Izmir", "Turkey", "2,900,000"), ("Haifa", "Israel", "285,300"), ("Oran", "Algeria", "852,000"),
    ("Mombasa", "Kenya", "1,208,000"), ("Kumasi", "Ghana", "443,900"), ("Durban", "South Africa", "595,000"), ("Pune", "India", "3,124,000"),
    ("Da Nang", "Vietnam", "988,500"), ("Busan", "South Korea", "3,359,000"), ("Sapporo", "Japan", "1,959,000"), ("Cusco", "Peru", "428,000"),
    ("Quito", "Ecuador", "2,011,000"), ("Recife", "Brazil", "1,488,000"),
)  # fmt: skip
FORMS = (
    "{0} is a city in {1}. It has {2} inhabitants.",
    "In {1} one finds {0}, a city of {2}.",
    "{2} people live in {0}, which belongs to {1}.",
)
CHARACTERS = 400
"""Of a text from the sample data."""
EXAMPLES = "".join(
    f"Text: {text}\nName: {name}\nCountry: {country}\nPopulation: {people}\n\n"
    for text, name, country, people in SHOTS
)


@sgl.function
async def extract(s: sgl.ProgramState, text: str) -> None:
    """The fields, as plain text."""
    s += EXAMPLES + f"Text: {text}\nName:" + sgl.gen("name", max_tokens=16, stop="\n")
    s += "\nCountry:" + sgl.gen("country", max_tokens=16, stop="\n")
    s += "\nPopulation:" + sgl.gen("population", max_tokens=16, stop="\n")


@sgl.function
async def extract_by_turn(s: sgl.ProgramState, text: str) -> None:
    """The fields, in one turn of a chat."""
    s += sgl.user(f"{EXAMPLES}Text: {text}\nWrite its name, country and population in this form.")
    with s.assistant():
        s += "Name: " + sgl.gen("name", max_tokens=16, stop="\n")
        s += "\nCountry: " + sgl.gen("country", max_tokens=16, stop="\n")
        s += "\nPopulation: " + sgl.gen("population", max_tokens=16, stop="\n")


@dataclass
class Mode:
    """A way to run the program, and what it took.

    Attributes:
        found: the fields of each text.
        seconds: of each run.
        usage: of all.
    """

    name: str
    program: sgl.Function[...]
    backend: sgl.OpenAI
    speculation: bool = True
    found: list[tuple[str, ...]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    usage: sgl.Usage = sgl.Usage()  # noqa: RUF009 - frozen

    async def run(self, text: str) -> None:
        """One text."""
        began = time.perf_counter()
        state = await self.program.bind(text).run(
            backend=self.backend, speculation=self.speculation, temperature=0
        )
        self.seconds.append(time.perf_counter() - began)
        self.found.append(tuple(state[name].strip() for name in FIELDS))
        self.usage += state.usage

    def show(self) -> None:
        """Its JSON line."""
        usage = self.usage
        show(
            mode=self.name, prompts=len(self.found), input=usage.prompt_tokens, cached=usage.cached_tokens, output=usage.completion_tokens,
            wasted=usage.wasted_tokens, calls=usage.calls, retries=usage.retries, seconds=median(self.seconds),
        )  # fmt: skip


def texts_of(folder: str | None, count: int) -> list[str]:
    """So many texts: those of the sample data, or made up of `CITIES`."""
    file = Path(folder or "", "json_decode", "city_documents_22.jsonl")
    if not folder or not file.is_file():
        return [FORMS[number % len(FORMS)].format(*city) for number, city in enumerate(CITIES)][:count]
    documents = [json.loads(line)["document"] for line in file.read_text("utf-8").splitlines()]
    parts = [
        " ".join(document[start : start + CHARACTERS].split())
        for start in range(0, 2 * CHARACTERS, CHARACTERS)
        for document in documents
    ]
    return parts[:count]


async def measure(url: str, texts: list[str]) -> dict[str, Mode]:
    """Run all of them in every mode, in turns."""
    base = f"{url}/v1"
    completions = sgl.OpenAI("default", base_url=base, api="completions", key="none")
    chat = sgl.OpenAI("default", base_url=base, key="none", capabilities={"continuation": "none"})
    async with completions, chat:
        modes = [
            Mode("off", extract, completions, speculation=False),
            Mode("on", extract, completions),
            Mode("chat", extract_by_turn, chat),
        ]
        for number, text in enumerate(texts):
            for mode in modes if number % 2 else reversed(modes):
                await mode.run(text)
    return {mode.name: mode for mode in modes}


def equal_fields(one: Mode, other: Mode) -> int:
    """How many fields are the same."""
    return sum(
        a == b
        for mine, its in zip(one.found, other.found, strict=True)
        for a, b in zip(mine, its, strict=True)
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="of a running node; one is started without")
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    texts = texts_of(options.data, options.prompts)
    if options.url:
        modes = asyncio.run(measure(options.url, texts))
    else:
        with running() as node:
            modes = asyncio.run(measure(node.url, texts))
    report(modes, check=options.check)


def report(modes: dict[str, Mode], *, check: bool) -> None:
    """One line per mode, and what the targets are."""
    for mode in modes.values():
        mode.show()
    off, on, chat = modes["off"], modes["on"], modes["chat"]
    fields, prompts = equal_fields(off, on), len(on.found)
    show(
        equal_fields=fields, fields=prompts * len(FIELDS), time_ratio=median(off.seconds) / median(on.seconds)
    )
    verdict(
        [
            ("input tokens without / with", off.usage.prompt_tokens / on.usage.prompt_tokens, ">=", RATIO),
            ("calls without / with", off.usage.calls / on.usage.calls, ">=", RATIO),
            ("same fields", fields / (prompts * len(FIELDS)), ">=", 1),
            ("calls per turn of a chat", chat.usage.calls / prompts, "<=", 1),
        ],
        check=check,
    )


if __name__ == "__main__":
    main()
