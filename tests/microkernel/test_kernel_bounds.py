"""What others may leave in a kernel is bounded, and only what is theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sgl_actors.actors.microkernel import Address, Down, Message
from sgl_actors.actors.microkernel import system as systems
from sgl_actors.actors.microkernel.control import KERNEL
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.microkernel.wire import VERSION, Envelope, Kind, encode
from tests.microkernel.kernel_actors import Echo, Wait

HERE, THERE = "local://here", "local://there"


@pytest.fixture
async def system() -> AsyncIterator[System]:
    """A kernel with an echo."""
    made = System("here", LocalTransport(LocalHub(), HERE), force_codec=True)
    await made.open()
    cell = made.spawn(Echo, "echo")
    await cell.ready.wait()
    yield made
    await made.close()


def say(system: System, kind: Kind, number: int, message: Message | None = None, name: str = "a") -> int:
    """Have a frame delivered as if it came from `there`; returns how many were none."""
    tag = "" if message is None else message.TAG
    envelope = Envelope(
        VERSION, kind, number, Address("echo", 0, HERE), Address(name, 1, THERE), tag, timeout=60.0
    )
    return system.deliver([*encode(envelope, message)])


async def test_monitors_are_bounded(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """One incarnation is monitored by so many; more is a protocol error."""
    monkeypatch.setattr(systems, "WATCHERS", 5)
    echo = system.cells["echo"].address
    for number in range(20):
        envelope = Envelope(VERSION, Kind.MONITOR, 0, echo, Address(f"a{number}", 1, THERE))
        system.deliver([*encode(envelope, None)])
    assert len(system._monitors[echo]) == 5
    assert system.counters["protocol_errors"] == 15


async def test_only_its_own_process_tells_the_end_of_an_incarnation(system: System) -> None:
    """A `Down` from elsewhere is a protocol error, and nobody hears of it."""
    watched = Address("watched", 3, "local://elsewhere")
    system.monitor(system.cells["echo"], watched)
    assert say(system, Kind.DOWN, 0, Down(watched, "a lie")) == 1
    assert watched in system._monitors


async def test_open_questions_are_bounded_and_asked_once(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number again is the same question, which is not handled twice; over the bound askers are told to wait."""
    monkeypatch.setattr(systems, "OPEN", 3)
    for number in (1, 1, 1, 2, 3, 4, 5):
        say(system, Kind.CALL, number, Wait())
    assert system.counters["doubled"] == 2
    assert len(system._incoming) == 3


async def test_bad_frames_are_told_to_the_transport(system: System) -> None:
    """So that it can count them against who sent them."""
    assert system.deliver([b"garbage", b"", b"\x90", b""]) == 2
    assert say(system, Kind.CALL, 1, Wait()) == 0
    assert KERNEL not in system.cells
