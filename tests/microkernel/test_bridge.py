"""The way into a node over tcp: who comes in, what passes, and what becomes of it when the link breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq

from sgl_actors.actors.microkernel import Address, Message
from sgl_actors.actors.microkernel import bridge as bridges
from sgl_actors.actors.microkernel.bridge import check_listen
from sgl_actors.actors.microkernel.control import KERNEL, Ping, Pong
from sgl_actors.actors.microkernel.curve import KeyPair, draw
from sgl_actors.actors.microkernel.link import LEASE, Beat, LinkTransport, encode_notice
from sgl_actors.actors.microkernel.transport import pack
from sgl_actors.actors.microkernel.wire import VERSION, Down, Envelope, Kind, encode
from sgl_actors.actors.microkernel.zmq_transport import MOST_BAD
from sgl_actors.errors import ActorDown, ConfigError, Forbidden, NotReady, Overloaded, Unauthorized
from tests.microkernel.bridged import Wall, free_port, until, wall
from tests.microkernel.kernel_actors import Count, Heard, Say, Wait, Words


class Proxy:
    """Hands tcp on until it is told to break all connections."""

    def __init__(self, target: str) -> None:
        self._target = int(target.rpartition(":")[2])
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Let connections in."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def cut(self) -> None:
        """Break all connections, and let none in."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.sleep(0)


@asynccontextmanager
async def proxied(made: Wall) -> AsyncIterator[Proxy]:
    """A proxy before the bridge."""
    proxy = Proxy(made.address)
    await proxy.start()
    yield proxy
    await proxy.cut()


class Raw:
    """A connection with a key that says what it likes."""

    def __init__(self, made: Wall, pair: KeyPair) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, made.pair.public.encode())
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        self.socket.connect(made.address)

    def say(self, envelope: Envelope, message: Message | None = None) -> None:
        """Send one message."""
        self.socket.send(pack([*encode(envelope, message)]))

    def close(self) -> None:
        """Leave."""
        self.socket.close(0)
        self.context.term()


async def test_everything_that_passes_a_socket_passes_a_bridge() -> None:
    """Calls, streams with their credit, casts in order, errors and cancels go both ways on the client's one connection."""
    async with wall() as made:
        client, context = await made.client()
        assert await context.call("echo", Say("hi", 1), Say, timeout=5) == Say("hi", 2)
        stream: Any = context.stream("echo", Count(300), timeout=5, credit=8)
        async with aclosing(stream):
            assert [item.number async for item in stream] == [*range(300), 300]
        for number in range(200):
            context.cast("echo", Say(str(number)))
        words = (await context.call("echo", Heard(), Words, timeout=5)).words
        assert [word for word in words if word != "no credit"] == [str(number) for number in range(200)]
        task = asyncio.create_task(context.call("echo", Wait(), Say, timeout=60))
        await context.call("echo", Say("after"), Say, timeout=5)
        task.cancel()
        while "cancelled" not in (await context.call("echo", Heard(), Words, timeout=5)).words:
            await asyncio.sleep(0)
        assert {peer for peer, _, _ in made.admit.asked} == {"laptop"}
        await client.close()
        await until(lambda: not made.bridge.sessions)


async def test_unknown_keys_are_refused_and_counted() -> None:
    """Who is not listed does not come in, nor who takes the node for another one, nor who has no key."""
    async with wall() as made:
        with pytest.raises(Unauthorized, match="peers"):
            await made.client(draw())
        assert made.bridge.statistics()["keys_refused"] == 1
        for pair, keys in ((made.laptop, [draw().public]), (None, [])):
            with pytest.raises(NotReady):
                await LinkTransport.connect(made.address, pair, keys, 0.3)
        assert not made.bridge.sessions
        assert made.bridge.statistics().get("keys_accepted", 0) == 0


async def test_two_server_keys_are_good_while_one_replaces_the_other() -> None:
    """A client that has both reaches the node before and after."""
    async with wall() as made:
        both = [draw().public, made.pair.public]
        for keys in (both, both[::-1]):
            transport = await LinkTransport.connect(made.address, made.laptop, keys, 5.0)
            transport.close()


async def test_a_client_is_who_its_key_says() -> None:
    """Messages that claim to be another key's client are counted and dropped, and so are its signs of life and its good-bye."""
    async with wall() as made:
        client, context = await made.client()
        raw = Raw(made, made.desktop)
        echo = made.system.cells["echo"].address
        forged = Address("asker", 1, client.endpoint)
        raw.say(Envelope(VERSION, Kind.CAST, 0, echo, forged, Say.TAG), Say("forged"))
        raw.socket.send(pack([*encode_notice(Beat(client.endpoint))]))
        inside = Address("worker/0", 1, made.system.endpoint)
        raw.say(Envelope(VERSION, Kind.CAST, 0, echo, inside, Say.TAG), Say("forged, too"))
        await until(
            lambda: made.bridge.counters["forged"] == 2 and made.bridge.counters["unknown_clients"] == 1
        )
        assert (await context.call("echo", Heard(), Words, timeout=5)).words == []
        raw.close()
        await client.close()


async def test_nobody_outside_talks_to_kernels_or_to_other_clients() -> None:
    """What is for `@` is refused; what is for another client, or tells the end of somebody else, is a bad frame."""
    async with wall() as made:
        client, context = await made.client()
        with pytest.raises(Forbidden, match="kernels"):
            await context.call(Address(KERNEL, 0, made.system.endpoint), Ping(), Pong, timeout=5)
        me = context.address
        echo = made.system.cells["echo"].address
        for envelope, message in (
            (Envelope(VERSION, Kind.CAST, 0, Address("asker", 1, client.endpoint), me, Say.TAG), Say("x")),
            (Envelope(VERSION, Kind.DOWN, 0, echo, me, Down.TAG), Down(echo, "a lie")),
            (Envelope(VERSION, Kind.REPLY, 1, echo, me, Say.TAG), Say("x")),
        ):
            client.transport.send("", *encode(envelope, message), reserved=True)
        await until(lambda: made.bridge.counters["bad_frames"] == 3)
        assert (await context.call("echo", Say("still"), Say, timeout=5)).text == "still"
        await client.close()


async def test_after_a_broken_link_the_client_goes_on_under_its_endpoint() -> None:
    """Who waits when the link breaks gets `ActorDown` at once; what is sent meanwhile goes out when it is back."""
    async with wall() as made, proxied(made) as proxy:
        client, context = await made.client(address=proxy.address)

        def lost(_: str) -> None:
            client._fail_pending(lambda _: True, ActorDown("broken"))

        client.on_lost = lost
        waiting = asyncio.create_task(context.call("echo", Wait(), Say, timeout=60))
        await context.call("echo", Say("there"), Say, timeout=5)
        await proxy.cut()
        with pytest.raises(ActorDown, match="broken"):
            await waiting
        again = asyncio.create_task(context.call("echo", Say("again"), Say, timeout=20))
        await proxy.start()
        assert (await again).text == "again"
        assert list(made.bridge.sessions) == [client.endpoint]
        await client.close()


async def test_a_client_that_gives_no_sign_of_life_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the lease its mail is dropped, the root is told, and it learns so when it comes back."""
    monkeypatch.setattr(bridges, "SWEEP", 0.02)
    async with wall() as made, proxied(made) as proxy:
        client, context = await made.client(address=proxy.address)
        told: list[str] = []
        made.system.on_lost = told.append
        await context.call("echo", Say("there"), Say, timeout=5)
        made.system.transport.watch(client.endpoint)
        gone: list[str] = []
        client.transport.on_gone = gone.append  # type: ignore[attr-defined]
        await proxy.cut()
        made.clock = lambda: 1e9 + LEASE
        await until(lambda: not made.bridge.sessions)
        await until(lambda: told == [client.endpoint])
        await proxy.start()
        await until(lambda: gone)
        assert "does not know this client" in gone[0]
        await client.close()


async def test_a_new_bridge_tells_the_clients_of_the_one_before() -> None:
    """A client of a bridge that ended learns that it has to join again."""
    async with wall() as made:
        client, _ = await made.client()
        gone: list[str] = []
        client.transport.on_gone = gone.append  # type: ignore[attr-defined]
        made.bridge.close()
        made.build()
        await until(lambda: gone)
        await client.close()


async def test_who_brings_bad_frames_is_cut_and_barred(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `MOST_BAD` of them the connection ends and the key is not let in for a while; others go on."""
    monkeypatch.setattr(bridges, "SWEEP", 0.02)
    async with wall() as made:
        good, context = await made.client(made.desktop)
        raw = Raw(made, made.laptop)
        for _ in range(MOST_BAD + 10):
            raw.socket.send(pack([b"\x00garbage", b""]))
        await until(lambda: made.bridge.counters["cut"] == 1)
        raw.close()
        with pytest.raises(Unauthorized):
            await made.client(made.laptop)
        assert (await context.call("echo", Say("good"), Say, timeout=5)).text == "good"
        now = made.clock()
        made.clock = lambda: now + bridges.BAR + 1
        await until(lambda: not made.bridge._barred)
        client, _ = await made.client(made.laptop)
        await client.close()
        await good.close()


async def test_a_frame_that_is_too_long_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is in memory."""
    monkeypatch.setattr(bridges, "MAX_TCP_FRAME", 100_000)
    async with wall() as made:
        made.bridge.close()
        made.build()
        client, context = await made.client()
        lost = asyncio.Event()
        client.on_lost = lambda _: lost.set()
        context.cast("echo", Say("x" * 200_000))
        await lost.wait()
        assert (await context.call("echo", Heard(), Words, timeout=5)).words == []
        await client.close()


async def test_clients_and_their_questions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key has so many clients, one client so many open questions; what is over is turned away, and room comes back."""
    monkeypatch.setattr(bridges, "SESSIONS_EACH", 2)
    monkeypatch.setattr(bridges, "OPEN", 3)
    async with wall() as made:
        client, context = await made.client()
        other, _ = await made.client()
        with pytest.raises(NotReady, match="as many clients as it takes"):
            await LinkTransport.connect(made.address, made.laptop, [made.pair.public], 5)
        assert made.bridge.counters["turned_away"] == 1
        waiting = [asyncio.create_task(context.call("echo", Wait(), Say, timeout=60)) for _ in range(3)]
        await until(lambda: len(made.bridge.sessions[client.endpoint].questions) == 3)
        with pytest.raises(Overloaded, match="3 questions"):
            await context.call("echo", Say("one more"), Say, timeout=5)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert (await context.call("echo", Say("room"), Say, timeout=5)).text == "room"
        await client.close()
        await other.close()


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded; then it is gone, and its room with it."""
    monkeypatch.setattr(bridges, "CAPACITY", 4)
    async with wall() as made:
        client, _ = await made.client()
        monkeypatch.setattr(made.bridge, "_write", lambda *_: None)
        envelope = Envelope(VERSION, Kind.ITEM, 1, Address("asker", 1, client.endpoint), Address("echo", 1))
        for _ in range(9):
            made.system.transport.send(client.endpoint, *encode(envelope, None), reserved=True)
        await until(lambda: not made.bridge.sessions)
        monkeypatch.undo()
        await client.close()


async def test_without_keys_nothing_is_asked() -> None:
    """With `insecure_tcp` everybody on this machine is the same peer."""
    async with wall() as made:
        made.bridge.close()
        made.build(keyed=False)
        transport = await LinkTransport.connect(made.address, None, [], 5.0)
        assert "|anybody/" in transport.endpoint
        transport.close()


@pytest.mark.parametrize(
    ("listen", "keyed", "insecure", "why"),
    [
        ("tcp://*:7000", True, False, "every interface"),
        ("tcp://0.0.0.0:7000", True, False, "every interface"),
        ("tcp://[::]:7000", True, True, "every interface"),
        ("ipc:///tmp/x", True, False, "expected"),
        ("tcp://127.0.0.1", True, False, "expected"),
        ("tcp://127.0.0.1:0", True, False, "port from 1"),
        ("tcp://127.0.0.1:7000", False, False, "without keys"),
        ("tcp://192.0.2.1:7000", False, True, "loopback only"),
        ("tcp://192.0.2.1:7000", True, False, ""),
        ("tcp://127.0.0.1:7000", False, True, ""),
        ("tcp://[::1]:7000", False, True, ""),
        ("tcp://node.example:7000", True, False, ""),
    ],
)
def test_where_a_node_listens(listen: str, keyed: bool, insecure: bool, why: str) -> None:
    """With keys at an address that is named; without them on loopback if told so; at every interface never."""
    if not why:
        check_listen(listen, keyed=keyed, insecure=insecure)
        return
    with pytest.raises(ConfigError, match=why):
        check_listen(listen, keyed=keyed, insecure=insecure)


def test_the_link_s_messages_are_small() -> None:
    """What a client sends as a sign of life is not more than its endpoint."""
    first, second = encode_notice(Beat("x" * 50))
    assert first == b""
    assert len(second) < 70
    assert msgspec.msgpack.decode(second) == ["Beat", "x" * 50]
