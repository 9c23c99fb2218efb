"""Putting another class in the place of a running actor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sgl_actors.actors.microkernel import Actor, Context, Snapshot
from sgl_actors.actors.microkernel import swap as swapping
from sgl_actors.actors.microkernel.cell import Cell
from sgl_actors.actors.microkernel.plugins import load_class
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.errors import ConfigError, SwapFailed
from tests.microkernel.swap_actors import (
    Add,
    Better,
    Broken,
    Counter,
    Faulty,
    Later,
    OtherLayout,
    Plain,
    Release,
    Restless,
    Slow,
    State,
    Sum,
    parts,
)


@pytest.fixture
async def kernel() -> AsyncIterator[tuple[System, Cell, Context]]:
    """A kernel with a counter and somebody who asks it."""
    system = System("here", LocalTransport(LocalHub(), "local://here"), force_codec=True)
    await system.open()
    cell = system.spawn(Counter, "counter", {})
    await cell.ready.wait()
    yield system, cell, system.spawn(Outside, "asker").context
    await system.close()


async def test_a_swap_keeps_state_requests_and_address(kernel: tuple[System, Cell, Context]) -> None:
    """What was counted, who waits for an answer and the epoch are the same; the class is another one."""
    _, cell, ctx = kernel
    address = cell.address
    await ctx.call("counter", Add(5), Sum)
    waiting = asyncio.create_task(ctx.call("counter", Later(), Sum))
    await ctx.call("counter", Add(1), Sum)
    old = cell.actor
    held = await cell.swap(Better, {"options": {"bonus": 100}}, 5.0)
    assert held < 5
    assert isinstance(old, Counter)
    assert old.left
    assert await ctx.call("counter", Add(0), Sum) == Sum(106, 2)
    ctx.cast("counter", Release())
    assert await waiting == Sum(106, 2)
    assert cell.address == address


async def test_nothing_is_lost_while_swapping_back_and_forth(kernel: tuple[System, Cell, Context]) -> None:
    """Of a thousand calls and casts that come while the class changes thirty times each counts once."""
    _, cell, ctx = kernel
    done = asyncio.Event()

    async def ask() -> int:
        answers = 0
        while not done.is_set() or answers < 500:
            await ctx.call("counter", Add(1), Sum)
            ctx.cast("counter", Add(1))
            answers += 1
        return answers

    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(ask()) for _ in range(2)]
        for number in range(30):
            await cell.swap((Counter, Better)[number % 2], {}, 5.0)
        done.set()
    total = await ctx.call("counter", Add(0), Sum)
    assert total.total == 2 * sum(task.result() for task in asking)


@pytest.mark.parametrize(
    ("successor", "why"),
    [
        (Broken, "restore is broken"),
        (OtherLayout, "counter/7"),
        (Slow, "did not restore"),
        (Faulty, "task is broken"),
    ],
)
async def test_a_failing_successor_is_rolled_back(
    kernel: tuple[System, Cell, Context], successor: type[Counter], why: str
) -> None:
    """The old actor goes on; what the new one had begun has ended, and its timer brings nothing."""
    _, cell, ctx = kernel
    await ctx.call("counter", Add(5), Sum)
    old, tasks = cell.actor, parts(cell)[0]
    with pytest.raises(SwapFailed, match=why):
        await cell.swap(successor, {}, 0.05)
    assert cell.actor is old
    assert await ctx.call("counter", Add(1), Sum) == Sum(6, 1)
    await asyncio.sleep(0)
    assert await ctx.call("counter", Add(0), Sum) == Sum(6, 1)
    assert parts(cell) == (tasks, False)


async def test_an_actor_that_does_not_come_to_rest_goes_on(
    kernel: tuple[System, Cell, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of `settle` ends the swap, not the actor; the next one may succeed."""
    _, cell, ctx = kernel
    await cell.swap(Restless, {}, 5.0)
    monkeypatch.setattr(swapping, "SETTLE_TIMEOUT", 0.02)
    with pytest.raises(SwapFailed, match="did not come to rest"):
        await cell.swap(Better, {}, 5.0)
    assert (await ctx.call("counter", Add(1), Sum)).total == 1
    assert not cell.swapping


async def test_an_end_during_a_swap_ends_it(kernel: tuple[System, Cell, Context]) -> None:
    """Who asked for the swap hears that the incarnation has ended, and two swaps at a time are refused."""
    _, cell, _ = kernel
    swap = asyncio.create_task(cell.swap(Slow, {}, 60.0))
    while not cell.swapping:
        await asyncio.sleep(0)
    with pytest.raises(SwapFailed, match="already"):
        await cell.swap(Better, {}, 5.0)
    cell.stop("enough")
    with pytest.raises(SwapFailed, match="ended"):
        await swap
    with pytest.raises(SwapFailed, match="not running"):
        await cell.swap(Better, {}, 5.0)


async def test_classes_without_the_protocol_are_told_apart() -> None:
    """Both halves are needed; the defaults say what is missing."""
    assert swapping.swappable(Counter, Better, Actor)
    assert not swapping.swappable(Plain, Better, Actor)
    assert not swapping.swappable(Counter, Plain, Actor)


def test_a_snapshot_is_plain_data_and_says_what_does_not_fit() -> None:
    """State travels as msgpack of a known layout; handles have a type."""
    snapshot = Snapshot.of("counter/1", State(7), waiting=[])
    assert snapshot.read("counter/1", State) == State(7)
    assert snapshot.handle("waiting", list) == []
    with pytest.raises(SwapFailed, match="layout"):
        snapshot.read("counter/2", State)
    with pytest.raises(SwapFailed, match="no counter/1"):
        Snapshot("counter/1", b"\xc1").read("counter/1", State)
    with pytest.raises(SwapFailed, match="waiting"):
        snapshot.handle("waiting", dict)


def test_a_class_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module, no class in it, no actor, no plugin of that name."""
    assert load_class("tests.microkernel.swap_actors:Counter") is Counter
    for path in ("no.such:Class", "tests.microkernel.swap_actors:Nobody", "json:loads", "nobody"):
        with pytest.raises(ConfigError):
            load_class(path)


def test_a_module_that_ends_the_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs in that process does not end with it."""
    (tmp_path / "ending_plugin.py").write_text("raise SystemExit(5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ends the process"):
        load_class("ending_plugin:Actor")
