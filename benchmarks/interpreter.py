"""What the language itself costs: CPU time per primitive, many programs at once, and the memory of programs that wait.

    python -m benchmarks.interpreter [--programs 1000] [--rounds 5] [--idle 10000] [--check]

All against the mock backend in this process, so that nothing but the interpreter and its actors is counted.

one     programs of ten primitives (text, gen, text, select, …), one after another: CPU time per primitive.
many    the same programs, all at once: CPU time per primitive, and seconds for all of them.
idle    programs whose body waits for something else: growth of this process's resident memory, per program.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time

import psutil

import sgl_actors as sgl
from benchmarks.harness import median, show, verdict

PRIMITIVES = 10
"""Of `ten`: five texts, four gens and a value that is set."""
MICRO = 1e6
LIMITS = {"cpu_us": 150.0, "seconds": 5.0, "idle_kib": 16.0}


@sgl.function
async def ten(s: sgl.ProgramState) -> None:
    """Ten primitives."""
    for index in range(4):
        s += f"Question {index}: "
        s += sgl.gen(f"x{index}")
    s["note"] = "done"
    s += "The end."


@sgl.function
async def waiting(s: sgl.ProgramState, begun: list[None], go: asyncio.Future[None]) -> None:
    """Does nothing for a long time."""
    s["begun"] = True
    begun.append(None)
    await go


async def one_by_one(mock: sgl.Mock, programs: int) -> float:
    """CPU microseconds per primitive."""
    began = time.process_time()
    for _ in range(programs):
        await ten.run(backend=mock)
    return (time.process_time() - began) / (programs * PRIMITIVES) * MICRO


async def at_once(mock: sgl.Mock, programs: int) -> tuple[float, float]:
    """CPU microseconds per primitive, and seconds for all."""
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(ten.run(backend=mock) for _ in range(programs)))
    seconds = time.perf_counter() - began
    return (time.process_time() - cpu) / (programs * PRIMITIVES) * MICRO, seconds


async def idle(mock: sgl.Mock, programs: int) -> float:
    """KiB of resident memory per program that waits."""
    go, begun = asyncio.get_running_loop().create_future(), list[None]()
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    tasks = [asyncio.ensure_future(waiting.run(begun, go, backend=mock)) for _ in range(programs)]
    while len(begun) < programs:
        await asyncio.sleep(0)
    gc.collect()
    grown: int = process.memory_info().rss - before
    go.set_result(None)
    await asyncio.gather(*tasks)
    return grown / programs / 1024


async def measure(programs: int, rounds: int, waits: int) -> dict[str, float]:
    """Medians."""
    found: dict[str, list[float]] = {"one_us": [], "many_us": [], "seconds": []}
    async with sgl.Mock({}, default="An answer.") as mock:
        await one_by_one(mock, 50)
        for number in range(rounds):
            found["one_us"].append(await one_by_one(mock, programs // 5))
            many, seconds = await at_once(mock, programs)
            found["many_us"].append(many)
            found["seconds"].append(seconds)
            show(case="cpu", round=number, **{name: values[-1] for name, values in found.items()})
        waited = await idle(mock, waits)
        show(case="idle", programs=waits, kib=waited)
    return {"idle_kib": waited, **{name: median(values) for name, values in found.items()}}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    found = asyncio.run(measure(options.programs, options.rounds, options.idle))
    targets = [
        ("CPU per primitive, one program after another (µs)", found["one_us"], "<=", LIMITS["cpu_us"]),
        (
            f"CPU per primitive, {options.programs} programs at once (µs)",
            found["many_us"],
            "<=",
            LIMITS["cpu_us"],
        ),
        (f"seconds for {options.programs} programs at once", found["seconds"], "<=", LIMITS["seconds"]),
        (f"KiB per idle program, of {options.idle}", found["idle_kib"], "<=", LIMITS["idle_kib"]),
    ]
    verdict(targets, check=options.check)


if __name__ == "__main__":
    main()
