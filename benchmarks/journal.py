"""What it costs that a program is durable: time per gen and per program, with and without a journal, and how fast recorded answers are given again.

    python -m benchmarks.journal [--programs 200] [--rounds 5] [--tokens 64] [--folder DIR] [--check]

Against the mock backend in this process; answers come token by token. Plain and durable runs alternate.

one     programs of four gens, one after another: wall time and CPU time that the journal adds, per gen.
many    the same, all at once: programs per second, durable over plain.
again   a program of 200 gens that was ended before its end: microseconds per gen that is answered from the journal.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import sgl_actors as sgl
from benchmarks.harness import median, show, verdict

GENS = 4
RECORDED = 200
MICRO = 1e6
LIMITS = {"wall_us": 3000.0, "cpu_us": 2000.0, "ratio": 0.25, "again_us": 1000.0}


@sgl.function
async def four(s: sgl.ProgramState) -> str:
    """Four gens, each of which waits for the one before it."""
    for index in range(GENS):
        s += f"Question {index}: " + sgl.gen(f"x{index}")
    return await s.text()


@sgl.function
async def long(s: sgl.ProgramState) -> None:
    """Many gens, then the end of its process, as far as the journal can tell."""
    for index in range(RECORDED):
        s += sgl.gen(f"x{index}")
    await s.sync()
    raise asyncio.CancelledError


class Bench:
    """Runs of both kinds."""

    def __init__(self, mock: sgl.Mock, file: Path) -> None:
        self._mock, self._file = mock, file
        self._ids = (f"run-{number}" for number in itertools.count())

    def options(self, *, durable: bool) -> dict[str, Any]:
        """Of a run."""
        return {"backend": self._mock, **({"durable": self._file, "id": next(self._ids)} if durable else {})}

    async def one(self, programs: int, *, durable: bool) -> tuple[float, float]:
        """Wall and CPU microseconds per gen."""
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(programs):
            await four.run(**self.options(durable=durable))
        seconds = time.perf_counter() - began
        gens = programs * GENS
        return seconds / gens * MICRO, (time.process_time() - cpu) / gens * MICRO

    async def many(self, programs: int, *, durable: bool) -> float:
        """Programs per second."""
        began = time.perf_counter()
        await asyncio.gather(*(four.run(**self.options(durable=durable)) for _ in range(programs)))
        return programs / (time.perf_counter() - began)

    async def again(self) -> float:
        """Microseconds per recorded gen."""
        options = self.options(durable=True)
        spent = []
        for _ in range(2):  # the second finds all of it
            began = time.perf_counter()
            await asyncio.gather(long.run(**options), return_exceptions=True)
            spent.append(time.perf_counter() - began)
        return spent[1] / RECORDED * MICRO


async def measure(file: Path, programs: int, rounds: int, tokens: int) -> dict[str, float]:
    """Medians over the rounds."""
    found: dict[str, list[float]] = {}
    async with sgl.Mock({}, default=lambda _call: [f" w{n}" for n in range(tokens)]) as mock:
        bench = Bench(mock, file)
        for number in range(rounds + 1):
            row: dict[str, float] = {}
            for durable in (False, True):
                kind = "durable" if durable else "plain"
                row[f"{kind}_wall_us"], row[f"{kind}_cpu_us"] = await bench.one(
                    programs // 4, durable=durable
                )
                row[f"{kind}_per_s"] = await bench.many(programs, durable=durable)
            row["again_us"] = await bench.again()
            if number:  # the first warms up
                show(case="journal", round=number, tokens=tokens, **row)
                for name, value in row.items():
                    found.setdefault(name, []).append(value)
    return {name: median(values) for name, values in found.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where the journal lies: what its disk takes counts")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "journal.db"
        found = asyncio.run(measure(file, options.programs, options.rounds, options.tokens))
    wall = found["durable_wall_us"] - found["plain_wall_us"]
    cpu = found["durable_cpu_us"] - found["plain_cpu_us"]
    ratio = found["durable_per_s"] / found["plain_per_s"]
    show(case="medians", **found)
    verdict(
        [
            ("wall time that the journal adds, per gen (µs)", wall, "<=", LIMITS["wall_us"]),
            ("CPU time that it adds, per gen (µs)", cpu, "<=", LIMITS["cpu_us"]),
            ("programs per second, durable over plain", ratio, ">=", LIMITS["ratio"]),
            ("per gen that is answered from the journal (µs)", found["again_us"], "<=", LIMITS["again_us"]),
        ],
        check=options.check,
    )


if __name__ == "__main__":
    main()
