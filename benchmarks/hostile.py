"""Hostile constraints under load: whether those who do not use them notice, and whether memory stays.

    python -m benchmarks.hostile [--rounds 3] [--compilations 1000] [--check]

`others`: four streams of random prompts run all the time; in turns they are left alone, and fifty hostile constraints are submitted one after the other. Compared is the
time between two chunks (p99) of the streams. Each constraint has to be served or refused with a 400 that says why.

`memory`: resident bytes of all the node's processes before and after that many different constraints, once as many have been compiled as are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import psutil

from benchmarks.harness import LiveNode, running, show, verdict
from sgl_actors.bench.client import LoadError, complete
from sgl_actors.bench.load import random_prompts
from sgl_actors.bench.samples import percentile

Targets = list[tuple[str, float, str, float]]
Params = Mapping[str, Any]

STREAMS = 4
STREAM_TOKENS = 256
CALM_SECONDS = 20.0
RATIO = 1.5
"""Target: p99 between two chunks, disturbed over undisturbed."""
PATIENCE = 60.0
"""Seconds in which a hostile constraint has to be answered; how many of them it may compute is the node's `[grammar] seconds`."""
KEPT = 500
"""Constraints compiled before memory is first looked at."""
GROWTH = 0.03
"""Target: growth of resident memory over the compilations."""


def objects(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A strict object of these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


def nested(schema: Any, depth: int) -> Any:
    """An array of arrays, and so on to that depth."""
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Definitions of which each holds the next twice."""
    pairs = {
        f"L{n}": objects({"a": {"$ref": f"#/$defs/L{n + 1}"}, "b": {"$ref": f"#/$defs/L{n + 1}"}})
        for n in range(levels)
    }
    return {"$ref": "#/$defs/L0", "$defs": {**pairs, f"L{levels}": {"type": "null"}}}


REGEXES = (
    "(a+)+$", "((a*)*)*b", "(a|a)*(b|b)*c", "(.{0,200}){0,200}", "a{1,100000}", "(a{1,1000}){1,1000}", "[^x]{5000}",
    r"\w{1,2000}", r"(\w|\d|\s){1000}", "(x?){3000}x{3000}", ".*a.{22}", "(a|b)*a(a|b){24}", "(" * 3000 + "a" + ")" * 3000,
    "a" * 1_000_000, "|".join(f"word{n}" for n in range(6_000)), "(?:a?){1,5000}", r"(a)\1", "(?=a)b", "(?<!a)b", "[", "(", "*a",
    r"\p{Nope}", "x{5,2}", r"\p{L}{1,500}", "(?i)([a-z]{1,100}){50}", r"[^\x{0}-\x{10FFFF}]", "(((.*)*)*)*" * 20,
)  # fmt: skip
SCHEMAS: tuple[Any, ...] = (
    objects({f"property number {n}": {"type": "string"} for n in range(1_200)}),
    nested({"type": "integer"}, 400),
    {"$ref": "https://example.com/schema.json"},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"not": {"type": "string"}},
    {"enum": [f"value {n}" for n in range(4_000)]},
    {"type": "string", "minLength": 10**9},
    {"type": "array", "items": {"type": "string"}, "minItems": 10**6},
    {"type": "string", "pattern": "^((a+)+)+(b{1,1000}){1,1000}$"},
    {"$ref": "#"},
    {"anyOf": [{"anyOf": [objects({f"k{n}": {"const": m}}) for m in range(20)]} for n in range(20)]},
    doubling(30),
    {"allOf": [{"type": "string", "pattern": f"(.*{c}){{3}}"} for c in "abcdefghijkl"]},
    {"type": "string", "format": "no-such-format"},
)
GRAMMARS = (
    "start: start",
    'start: "a" start',
    "start: nothing",
    "start: /(a{1,1000}){1,1000}/",
    'start: "a"~0..1000000',
)
CHOICES: tuple[list[Any], ...] = ([], ["x" * 60_000])


def hostile() -> Iterator[Params]:
    """Fifty, as `sampling_params`."""
    for source in REGEXES:
        yield {"regex": source}
    for schema in SCHEMAS:
        yield {"json_schema": json.dumps(schema)}
    for grammar in GRAMMARS:
        yield {"lark": grammar}
    for texts in CHOICES:
        yield {"choice": texts}


class Streams:
    """Prompts that are answered one after the other, `STREAMS` at a time, until `ended`."""

    def __init__(self, http: httpx2.AsyncClient, model: str) -> None:
        self._http, self._model = http, model
        self._seeds = itertools.count(10**9)
        self.ended = False

    async def run(self) -> list[float]:
        """Seconds between neighbouring chunks of every stream."""
        parts = await asyncio.gather(*(self._stream() for _ in range(STREAMS)))
        return [gap for part in parts for gap in part]

    async def _stream(self) -> list[float]:
        gaps: list[float] = []
        while not self.ended:
            (prompt,) = random_prompts(1, next(self._seeds), tokens=32)
            sample = await complete(self._http, self._model, prompt, STREAM_TOKENS)
            gaps += [b - a for a, b in itertools.pairwise(sample.arrivals)]
        return gaps


async def others(node: LiveNode, rounds: int) -> Targets:
    """See the module."""
    calm: list[float] = []
    disturbed: list[float] = []
    bad = 0
    async with httpx2.AsyncClient(base_url=node.url, timeout=httpx2.Timeout(600)) as http:
        model = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        for warm in (
            {"regex": "[a-z]{3}"},
            {"lark": 'start: "a" | "b"'},
        ):  # the first of each sets its engine up
            (await http.post("/generate", json={"text": "x", "sampling_params": warm})).raise_for_status()
        for round_ in range(rounds):
            for attack in (False, True) if round_ % 2 else (True, False):
                streams = Streams(http, model)
                running_streams = asyncio.create_task(streams.run())
                if attack:
                    bad += await submit(http, round_)
                else:
                    await asyncio.sleep(CALM_SECONDS)
                streams.ended = True
                gaps = await running_streams
                (disturbed if attack else calm).extend(gaps)
                show(
                    case="others", round=round_, attack=attack, chunks=len(gaps), itl_ms_p50=percentile(gaps, 0.5) * 1e3,
                    itl_ms_p99=percentile(gaps, 0.99) * 1e3, itl_ms_max=max(gaps) * 1e3,
                )  # fmt: skip
    return [
        ("hostile constraints that got another answer than success or a 400 with its reason", float(bad), "<=", 0),
        ("p99 between chunks of the others, disturbed over undisturbed", percentile(disturbed, 0.99) / percentile(calm, 0.99), "<=", RATIO),
    ]  # fmt: skip


async def submit(http: httpx2.AsyncClient, round_: int) -> int:
    """All hostile constraints; how many were answered otherwise than they have to be. Each round's differ a little, as answers are kept."""
    bad = 0
    for number, params in enumerate(hostile()):
        fresh = {name: vary(name, value, round_) for name, value in params.items()}
        body = {"text": "x", "sampling_params": {"max_new_tokens": 4, "temperature": 0, **fresh}}
        began = time.perf_counter()
        try:
            answer = await http.post("/generate", json=body, timeout=PATIENCE)
            status, text = answer.status_code, answer.text
        except httpx2.TimeoutException:
            status, text = 0, f"no answer within {PATIENCE:g} s"
        expected = status == 200 or (status == 400 and bool(json.loads(text)["error"]["message"]))
        bad += not expected
        message = "" if status == 200 else text[:300]
        shown = str(next(iter(params.values())))[:60]
        show(case="hostile", round=round_, number=number, kind=next(iter(params)), source=shown, status=status,
             seconds=time.perf_counter() - began, expected=expected, message=message)  # fmt: skip
    return bad


def vary(name: str, value: Any, round_: int) -> Any:
    """Another source of the same effect."""
    if name == "choice":
        return [f"{text}{round_}" for text in value]
    return value + {"regex": "z" * round_, "lark": "\n" * round_, "json_schema": " " * round_}[name]


async def memory(node: LiveNode, compilations: int) -> Targets:
    """See the module."""
    numbers = itertools.count()

    async with httpx2.AsyncClient(base_url=node.url, timeout=httpx2.Timeout(600)) as http:

        async def compile_some(count: int) -> None:
            left = iter(range(count))

            async def work() -> None:
                for _ in left:
                    params = {"regex": f"[a-z]{{1,9}} number {next(numbers)}", "max_new_tokens": 2}
                    answer = await http.post("/generate", json={"text": "x", "sampling_params": params})
                    if answer.status_code != 200:
                        raise LoadError(f"{answer.status_code}: {answer.text}")

            await asyncio.gather(*(work() for _ in range(STREAMS)))

        await compile_some(KEPT)
        before = resident(node)
        show(case="memory", compilations=KEPT, **before)
        for done in range(0, compilations, 250):
            await compile_some(min(250, compilations - done))
            after = resident(node)
            show(case="memory", compilations=KEPT + done + 250, **after)
    growth = after["total_mib"] / before["total_mib"] - 1
    return [(f"growth of resident memory over {compilations} compilations", growth, "<=", GROWTH)]


def resident(node: LiveNode) -> dict[str, float]:
    """MiB of the node's processes together, and of the largest ones."""
    root = psutil.Process(node.record.pid)
    sizes = sorted(
        (process.memory_info().rss / 2**20 for process in [root, *root.children(recursive=True)]),
        reverse=True,
    )
    return {
        "total_mib": sum(sizes),
        "processes": len(sizes),
        **{f"mib_{n}": size for n, size in enumerate(sizes[:4])},
    }


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="others,memory", help="of others, memory; default: both")
    parser.add_argument("--rounds", type=int, default=3, help="of others")
    parser.add_argument("--compilations", type=int, default=1000, help="of memory")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in ("others", "memory")]:
        parser.error(f"unknown: {', '.join(unknown)}")
    aims: Targets = []
    with running() as node:
        if "others" in names:
            aims += asyncio.run(others(node, arguments.rounds))
        if "memory" in names:
            aims += asyncio.run(memory(node, arguments.compilations))
    verdict(aims, check=arguments.check)


if __name__ == "__main__":
    main()
