"""The seeded loop: virtual time, order of callbacks, simulated processes that are held and killed."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from typing import Any, cast

import pytest

from sgl_actors.actors.microkernel.simulated_loop import BEGIN, SimulatedLoop, SimulationError, run


def loop_here() -> SimulatedLoop:
    return cast("SimulatedLoop", asyncio.get_running_loop())


def test_time_passes_only_where_something_is_waited_for() -> None:
    """Days take no time, timers fire in order, and every clock of the process shows the virtual time."""

    async def main() -> list[tuple[str, float]]:
        fired: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            fired.append((name, time.monotonic() - BEGIN))

        async with asyncio.TaskGroup() as group:
            group.create_task(wait("late", 86_400.0))
            group.create_task(wait("early", 1.0))
        assert time.perf_counter() == loop_here().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return fired

    began = time.perf_counter()
    assert run(main, 1) == [("early", 1.0), ("late", 86_400.0)]
    assert time.perf_counter() - began < 60


def test_randomness_follows_the_seed() -> None:
    """What is drawn while it runs, by whatever means, repeats with the seed; afterwards all is as before."""

    async def main() -> list[Any]:
        return [
            random.random(),
            secrets.randbits(64),
            secrets.token_hex(8),
            os.urandom(4),
            await asyncio.to_thread(len, "ab"),
        ]

    before = (os.urandom, secrets.token_hex, time.monotonic)
    assert run(main, 5) == run(main, 5) != run(main, 6)
    assert (os.urandom, secrets.token_hex, time.monotonic) == before


def order(seed: int) -> list[str]:
    """In which order two processes take their turns."""

    async def main() -> list[str]:
        turns: list[str] = []

        async def take(name: str) -> None:
            for number in range(5):
                turns.append(f"{name}{number}")
                await asyncio.sleep(0)

        hosts = [loop_here().host(name) for name in "ab"]
        await asyncio.wait([host.task(take(host.name)) for host in hosts])
        return turns

    return run(main, seed)


def test_processes_take_turns_as_the_seed_says_and_each_keeps_its_own_order() -> None:
    """Callbacks of one process run first come first served; those of several are interleaved in many ways."""
    orders = {tuple(order(seed)) for seed in range(20)}
    assert len(orders) > 5
    for one in orders:
        assert [turn for turn in one if turn[0] == "a"] == [f"a{n}" for n in range(5)]
    assert order(3) == order(3)


def test_a_held_process_goes_on_where_it_was() -> None:
    """While it is held nothing of it runs, though its timers are due; then all of that runs."""

    async def main() -> tuple[list[float], list[float]]:
        ticks: list[float] = []

        async def tick() -> None:
            for _ in range(3):
                await asyncio.sleep(1.0)
                ticks.append(loop_here().time() - BEGIN)

        host = loop_here().host("held")
        task = host.task(tick())
        await asyncio.sleep(1.5)
        host.hold()
        await asyncio.sleep(10.0)
        before = list(ticks)
        host.wake()
        await task
        return before, ticks

    assert run(main, 1) == ([1.0], [1.0, 11.5, 12.5])


def test_a_killed_process_runs_nothing_more_not_even_its_finally() -> None:
    """Death is in the middle of everything; others go on, and nothing is left that complains."""

    async def main() -> list[str]:
        done: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(1.0)
            finally:
                done.append("finally")

        host = loop_here().host("victim")
        host.task(work())
        await asyncio.sleep(0.5)
        host.kill()
        await asyncio.sleep(5.0)
        assert not loop_here().complaints
        return list(done)

    assert run(main, 1) == []


def test_what_can_never_go_on_is_an_error() -> None:
    """A wait for nothing, and a loop that never waits, end the simulation and say so."""

    async def forever() -> None:
        await asyncio.Event().wait()

    async def busy() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(SimulationError, match="waits for ever"):
        run(forever, 1)
    with pytest.raises(SimulationError, match="without any passing of time"):
        run(busy, 1)


def test_sets_of_tasks_are_in_the_same_order_in_each_run() -> None:
    """A task group cancels its tasks in the order of their numbers, not of their addresses."""

    async def main() -> list[str]:
        ended: list[str] = []

        async def wait(name: str) -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                ended.append(name)
                raise

        async def fail() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(30):
                    group.create_task(wait(str(number)))
                await asyncio.sleep(1)
                raise ValueError

        with pytest.raises(ExceptionGroup):
            await fail()
        return ended

    ballast = [object() for _ in range(1000)]
    first = run(main, 1)
    del ballast[::2]
    assert run(main, 1) == first
