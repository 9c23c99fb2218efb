"""The simulated network: order, loss, partitions, and what is told of it; a node's kernels on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from sgl_actors.actors.microkernel.simulated import TIMEOUT, SimulatedNetwork, SimulatedTransport, Weather
from sgl_actors.actors.microkernel.simulated_loop import SimulatedLoop, run
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.errors import ActorDown, DeadlineExceeded, Overloaded
from tests.microkernel.kernel_actors import Count, Echo, Say


class Wire:
    """Two endpoints, and what `b` got and `a` lost."""

    def __init__(self, weather: Weather | None = None) -> None:
        loop = cast("SimulatedLoop", asyncio.get_running_loop())
        self.network = SimulatedNetwork(loop, weather)
        self.got: list[int] = []
        self.lost: list[str] = []
        self.a, self.b = self._open("a"), self._open("b")
        self.sent = 0

    def _open(self, name: str) -> SimulatedTransport:
        transport = self.network.transport(name, self.network.loop.host(name))
        transport.open(lambda frames: self.got.append(int(frames[0])), self.lost.append)
        return transport

    def send(self, count: int) -> None:
        for _ in range(count):
            self.a.send("b", str(self.sent).encode(), b"", reserved=False)
            self.sent += 1


def over(seeds: int, history: Callable[[], Coroutine[Any, Any, None]]) -> None:
    for seed in range(seeds):
        run(history, seed)


def test_messages_of_one_pair_keep_their_order() -> None:
    """However long each takes, they arrive once each and in the order sent."""

    async def history() -> None:
        wire = Wire(Weather(spike=0.3, longest=2.0))
        for _ in range(20):
            wire.send(3)
            await asyncio.sleep(0.05)
        await asyncio.sleep(60)
        assert wire.got == list(range(60))

    over(10, history)


def test_a_short_cut_loses_nothing_and_a_long_one_loses_a_leading_part() -> None:
    """What is cut for less than the heartbeats' time comes late; later, what was under way may be lost, and the order stays."""
    losses = []

    async def short() -> None:
        wire = Wire()
        wire.a.watch("b")
        wire.network.cut("a", "b")
        wire.send(5)
        await asyncio.sleep(TIMEOUT / 2)
        assert wire.got == []
        wire.network.heal("a", "b")
        await asyncio.sleep(5)
        assert wire.got == list(range(5))
        assert wire.lost == []

    async def long() -> None:
        wire = Wire()
        wire.a.watch("b")
        wire.network.cut("a", "b")
        wire.send(5)
        await asyncio.sleep(TIMEOUT + 1)
        assert wire.lost == ["b"]
        wire.send(2)
        await asyncio.sleep(5)
        assert wire.got == []
        wire.network.heal("a", "b")
        await asyncio.sleep(5)
        assert wire.got[-2:] == [5, 6]
        assert wire.got == list(range(7 - len(wire.got), 7))
        losses.append(7 - len(wire.got))

    over(10, short)
    over(20, long)
    assert len(set(losses)) > 2


def test_a_killed_process_loses_what_it_sent_last_and_its_peers_hear_of_it() -> None:
    """Of its messages a leading part arrives; who watches it is told soon; what is sent to it is gone."""

    async def history() -> None:
        wire = Wire()
        wire.b.watch("a")
        wire.send(5)
        wire.a.host.kill()
        wire.network.leave("a", orderly=False)
        wire.b.send("a", b"0", b"", reserved=False)
        await asyncio.sleep(1)
        assert wire.got == list(range(len(wire.got)))
        assert wire.lost == (["a"] if wire.network.link("b", "a").watched else [])

    over(20, history)


def test_a_queue_is_bounded_and_has_room_for_replies() -> None:
    """`Overloaded` when as many wait as may; as many again are taken of what has room of its own."""

    async def history() -> None:
        wire = Wire(Weather(capacity=4))
        wire.send(4)
        with pytest.raises(Overloaded):
            wire.send(1)
        for _ in range(4):
            wire.a.send("b", b"9", b"", reserved=True)
        with pytest.raises(Overloaded):
            wire.a.send("b", b"9", b"", reserved=True)

    over(1, history)


def test_kernels_talk_over_it_as_over_any_other() -> None:
    """Calls and streams work; a process that is killed meanwhile ends them with an error once that is known, else their deadline does."""

    async def history() -> None:
        loop = cast("SimulatedLoop", asyncio.get_running_loop())
        network = SimulatedNetwork(loop)
        systems = []
        for name in ("here", "there"):
            host = loop.host(name)
            system = System(name, network.transport(name, host), clock=loop.time)
            await host.task(system.open())
            systems.append((host, system))
        (here_host, here), (there_host, there) = systems

        async def spawn() -> None:
            cell = there.spawn(Echo, "echo")
            await cell.ready.wait()
            here.name_up(cell.address)

        await there_host.task(spawn())

        async def ask() -> None:
            ctx = here.spawn(Outside, "asker").context
            await asyncio.sleep(0)
            assert (await ctx.call("echo", Say("hello", 1), Say)).number == 2
            stream = ctx.stream("echo", Count(40), credit=4)
            numbers = [cast("Say", item).number async for item in stream]
            assert numbers == list(range(41))
            there_host.kill()
            network.leave("there", orderly=False)
            with pytest.raises(DeadlineExceeded):
                await ctx.call("echo", Say("hello"), Say, timeout=5.0)
            here.peer_down("there")
            with pytest.raises(ActorDown):
                await ctx.call("echo", Say("hello"), Say, timeout=5.0)
            await here.close()

        await here_host.task(ask())

    over(10, history)
