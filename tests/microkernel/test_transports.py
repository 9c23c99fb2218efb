"""What transports promise: order, nothing twice, nothing of the dead, and bounds on all that waits."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq

from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.microkernel import transport as transports
from sgl_actors.actors.microkernel import zmq_transport as zmq_transports
from sgl_actors.actors.microkernel.ipc import MAX_SOCKET_PATH
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.transport import (
    MAX_FRAME,
    Frames,
    LocalHub,
    LocalTransport,
    Outbox,
    Transport,
)
from sgl_actors.actors.microkernel.wire import VERSION, Envelope, Kind, encode
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from sgl_actors.errors import ConfigError, InvalidRequest, Overloaded
from tests.microkernel.bridged import until
from tests.microkernel.kernel_actors import Echo, Say

REPOSITORY = Path(__file__).parent.parent.parent


class Ends:
    """Two transports, what the second one got, and which peers were lost."""

    def __init__(self, here: Transport, there: Transport) -> None:
        self.here, self.there = here, there
        self.got: list[tuple[bytes, bytes]] = []
        self.lost: list[str] = []
        self.sent = 0
        here.open(lambda _: None, self.lost.append)
        there.open(self._take, lambda _: None)

    def _take(self, frames: Frames) -> None:
        self.got += zip(frames[::2], frames[1::2], strict=False)

    def send(self, envelope: bytes, payload: bytes = b"", *, reserved: bool = False) -> None:
        """From the first to the second."""
        self.here.send(self.there.endpoint, envelope, payload, reserved=reserved)


async def send_until_refused(ends: Ends) -> None:
    """Number messages until there is no room; `sent` counts those that were taken."""
    while True:
        ends.send(b"%d" % ends.sent, bytes(1000))
        ends.sent += 1
        if ends.sent % 1000 == 0:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Ends]:
    """A pair of either kind."""
    hub = LocalHub()
    made: list[Transport] = [
        ZmqTransport(f"ipc://{folder}/{name}.ipc")
        if kind == "zmq"
        else LocalTransport(hub, f"local://{name}")
        for name in ("here", "there")
    ]
    yield Ends(*made)
    for one in made:
        one.close()


@pytest.fixture(params=["local", "zmq"])
async def ends(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ends]:
    """Two linked transports."""
    async with opened(request.param, tmp_path) as made:
        yield made


async def test_messages_arrive_once_and_in_order(ends: Ends) -> None:
    """Also many, of many sizes, from both of the sender's lanes."""
    sent = [(b"%d" % number, bytes(number * 37 % 5000)) for number in range(4000)]
    for number, (envelope, payload) in enumerate(sent):
        ends.send(envelope, payload, reserved=number % 3 == 0)
        if number % 500 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(ends.got) >= len(sent))
    await asyncio.sleep(0.02)
    assert ends.got == sent


async def test_what_waits_for_a_peer_is_bounded_in_messages_and_bytes(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over either bound `Overloaded` is raised; replies have as much room again; what has left makes room."""
    monkeypatch.setattr(transports, "MOST_BYTES", 10_000)
    ends.send(b"e", bytes(9000))
    with pytest.raises(Overloaded, match="bytes"):
        ends.send(b"e", bytes(2000))
    ends.send(b"e", bytes(2000), reserved=True)
    with pytest.raises(Overloaded, match="bytes"):
        ends.send(b"e", bytes(9500), reserved=True)
    await until(lambda: len(ends.got) == 2)
    ends.send(b"e", bytes(9000))
    await until(lambda: len(ends.got) == 3)


def test_one_large_message_is_let_through() -> None:
    """However small the room; one above `MAX_FRAME` never."""
    room = Outbox("peer", 10)
    payload = bytes(MAX_FRAME)
    room.add(b"envelope", payload, reserved=False)
    with pytest.raises(Overloaded):
        room.add(b"", b"x", reserved=False)
    room.take(1, len(b"envelope") + len(payload))
    assert (room.messages, room.bytes) == (0, 0)
    with pytest.raises(InvalidRequest, match="at most"):
        room.add(b"", bytes(MAX_FRAME + 1), reserved=False)


async def test_a_peer_that_does_not_read_costs_bounded_memory(tmp_path: Path) -> None:
    """Beyond what libzmq holds, messages wait in the outbox, and beyond that they are refused; nothing is lost or doubled then."""
    async with opened("zmq", tmp_path) as ends:
        router = ends.there._router  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        loop.remove_reader(zmq_transports.fd_of(router))
        with pytest.raises(Overloaded, match="messages"):
            await send_until_refused(ends)
        sent = ends.sent
        in_flight = 2 * (zmq_transports.IN_FLIGHT + zmq_transports.UNREAD) * zmq_transports.BATCH
        assert zmq_transports.CAPACITY <= sent <= zmq_transports.CAPACITY + in_flight
        loop.add_reader(zmq_transports.fd_of(router), ends.there._readable)  # type: ignore[attr-defined]
        loop.call_soon(ends.there._readable)  # type: ignore[attr-defined]
        await until(lambda: len(ends.got) == sent)
        assert [envelope for envelope, _ in ends.got] == [b"%d" % number for number in range(sent)]


async def test_only_the_node_s_own_sockets_are_connected_to(tmp_path: Path) -> None:
    """An endpoint stands in every message; one that is somewhere else, or is nothing, is never reached for, and leaves nothing behind."""
    with (tmp_path / "file.ipc").open("w"):
        pass
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as other, socket.socket() as tcp:
        other.bind(str(elsewhere / "other.ipc"))
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        tcp.setblocking(False)
        async with opened("zmq", tmp_path) as ends:
            for endpoint in (
                f"ipc://{tmp_path}/gone.ipc",
                f"ipc://{tmp_path}/file.ipc",
                f"ipc://{elsewhere}/other.ipc",
                f"ipc://{tmp_path}/elsewhere/../there.ipc",
                f"tcp://127.0.0.1:{tcp.getsockname()[1]}",
                "ipc://relative",
                "",
                "x" * 400,
                "ipc:///a\0b",
            ):
                ends.here.send(endpoint, b"e", b"p", reserved=True)
            assert ends.here.unreachable == 9  # type: ignore[attr-defined]
            assert not ends.here._peers  # type: ignore[attr-defined]
            with pytest.raises(BlockingIOError):
                tcp.accept()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_enter_is_refused(mode: int, tmp_path: Path) -> None:
    """Sockets lie in a folder of mode 0700."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"):
        ZmqTransport(f"ipc://{folder}/x.ipc")


def test_a_folder_behind_a_link_or_missing_is_refused(tmp_path: Path) -> None:
    """It could be planted."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="not a folder"):
        ZmqTransport(f"ipc://{tmp_path}/link/x.ipc")
    with pytest.raises(ConfigError, match="No such file"):
        ZmqTransport(f"ipc://{tmp_path}/missing/x.ipc")
    with pytest.raises(ConfigError, match="expected ipc"):
        ZmqTransport("tcp://127.0.0.1:7000")
    long = f"ipc://{tmp_path}/" + "x" * MAX_SOCKET_PATH
    with pytest.raises(ConfigError, match=str(MAX_SOCKET_PATH)):
        ZmqTransport(long)


async def test_many_behind_one_socket(tmp_path: Path) -> None:
    """Who is behind a relay is reached by its socket; a notice tells the loss of one of them, and only to who watches it."""
    async with opened("zmq", tmp_path) as ends:
        first, second = (f"{ends.there.endpoint}|{name}" for name in ("first", "second"))
        ends.here.watch(first)
        ends.here.send(second, b"for second", b"", reserved=False)
        await until(lambda: ends.got == [(b"for second", b"")])
        for endpoint in (second, first, "nonsense"):
            ends.there.send(ends.here.endpoint, b"", endpoint.encode(), reserved=True)
        await until(lambda: ends.lost)
        assert ends.lost == [first]
        assert len(ends.here._peers) == 1  # type: ignore[attr-defined]
        ends.here.drop(first)
        ends.here.drop(second)
        assert not ends.here._peers  # type: ignore[attr-defined]


async def test_who_brings_bad_frames_over_ipc_is_cut(tmp_path: Path) -> None:
    """Frames that come in odd numbers are none; many of them end the connection they come by, and no other."""
    async with opened("zmq", tmp_path) as ends:
        ends.send(b"good")
        context = zmq.Context()
        raw = context.socket(zmq.DEALER)
        raw.setsockopt(zmq.LINGER, 0)
        monitor = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        raw.connect(ends.there.endpoint)
        for _ in range(zmq_transports.MOST_BAD):
            raw.send(b"odd")
        await until(lambda: ends.there.cuts == 1)  # type: ignore[attr-defined]
        await until(lambda: monitor.poll(0))
        ends.send(b"still")
        await until(lambda: (b"still", b"") in ends.got)
        raw.disable_monitor()
        monitor.close(0)
        raw.close(0)
        context.term()


def start_sender(target: str, own: str, epoch: int) -> subprocess.Popen[bytes]:
    """A process that casts numbers from `ticker` of that epoch."""
    command = [sys.executable, "-m", "tests.microkernel.late_sender", target, own, str(epoch)]
    path = os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY)))
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


async def test_nothing_of_a_dead_epoch_is_delivered(tmp_path: Path) -> None:
    """A sender that was stopped, replaced and woken again: what it sent before it knew is counted, and reaches nobody."""
    system = System("there", ZmqTransport(f"ipc://{tmp_path}/there.ipc"))
    await system.open()
    cell = system.spawn(Echo, "echo")
    await cell.ready.wait()
    heard: Callable[[], list[str]] = lambda: cell.actor.words  # type: ignore[union-attr]  # noqa: E731
    sender = start_sender(system.endpoint, f"ipc://{tmp_path}/sender.1.ipc", 1)
    try:
        await until(lambda: len(heard()) > 200)
        sender.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sender.pid, os.WSTOPPED | os.WNOWAIT)
        system.name_up(Address("ticker", 1, f"ipc://{tmp_path}/sender.1.ipc"))
        system.name_up(Address("ticker", 2, f"ipc://{tmp_path}/sender.2.ipc"))
        system.peer_down(f"ipc://{tmp_path}/sender.1.ipc")
        before = len(heard()) + len(cell.mailbox)
        sender.send_signal(signal.SIGCONT)
        await until(lambda: system.counters["dead_letters"] > 200)
        assert len(heard()) + len(cell.mailbox) == before
        words = heard()
        assert words == [f"1:{number}" for number in range(len(words))]
    finally:
        sender.kill()
        sender.wait()
        await system.close()


async def test_a_late_message_of_a_dead_epoch_is_dropped(ends: Ends) -> None:
    """However it comes: what says that it is from an epoch that is over, or for one, is a dead letter."""
    ends.there.close()
    system = System("there", ends.there.__class__(*_arguments(ends.there)))
    await system.open()
    cell = system.spawn(Echo, "echo", epoch=5)
    await cell.ready.wait()
    system.name_up(Address("ticker", 7, "elsewhere"))
    for to, frm in (((5, 6), "old sender"), ((4, 7), "old receiver"), ((5, 7), "alive"), ((0, 8), "newer")):
        envelope = Envelope(
            VERSION,
            Kind.CAST,
            0,
            Address("echo", to[0], system.endpoint),
            Address("ticker", to[1], "elsewhere"),
            Say.TAG,
        )
        ends.here.send(system.endpoint, *encode(envelope, Say(frm)), reserved=False)
    await until(lambda: len(cell.actor.words) == 2)  # type: ignore[union-attr]
    assert cell.actor.words == ["alive", "newer"]  # type: ignore[union-attr]
    assert system.counters["dead_letters"] == 2
    await system.close()


def _arguments(transport: Transport) -> tuple[object, ...]:
    """What the transport was made with."""
    hub = getattr(transport, "_hub", None)
    return (transport.endpoint,) if hub is None else (hub, transport.endpoint)
