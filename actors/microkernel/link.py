"""A client's one connection to a node over tcp: what it sends to any actor, and what any actor sends it, goes through it.

The other end is the node's `bridge`. The client knocks and is welcomed with an endpoint of its own in the node, under which it is known for as
long as it gives signs of life; after a broken link it goes on under the same one. What was on its way when the link broke is lost:
whoever waited for an answer is told so, and may ask again.

Frames come in pairs as everywhere; a pair whose first is empty holds one of the messages below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.curve import KeyPair
from sgl_actors.actors.microkernel.transport import Deliver, Frames, Lost
from sgl_actors.actors.microkernel.zmq_transport import (
    MAX_BATCH,
    UNREAD,
    Sender,
    fd_of,
    read_batch,
    set_heartbeat,
)
from sgl_actors.errors import NotReady, Overloaded, ProtocolError, Unauthorized

VERSION = 1

IN_FLIGHT = 8
"""Batches that libzmq holds on either side of a link: the other end is not trusted with more memory."""

BEAT = 2.0
"""Seconds between two signs of life of a client."""

LEASE = 15.0
"""Seconds without one after which a client is taken for gone, or without its node a client takes the node for gone."""


class Knock(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the bridge: let me in."""

    version: int = VERSION


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the bridge: the client of that endpoint is alive, and reached by the connection this comes by."""

    endpoint: str


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the bridge: the client of that endpoint leaves."""

    endpoint: str


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the bridge: be known as `endpoint`; who else is there, `root` tells."""

    endpoint: str
    root: Address


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the bridge: that endpoint is no client's (any more), and why."""

    endpoint: str
    reason: str


_encoder = msgspec.msgpack.Encoder()
_to_bridge: msgspec.msgpack.Decoder[Knock | Beat | Bye] = msgspec.msgpack.Decoder(Knock | Beat | Bye)
_to_client: msgspec.msgpack.Decoder[Welcome | Gone] = msgspec.msgpack.Decoder(Welcome | Gone)


def encode_notice(notice: Knock | Beat | Bye | Welcome | Gone) -> tuple[bytes, bytes]:
    """The two frames of one of the link's own messages."""
    return b"", _encoder.encode(notice)


def decode_knock(frame: bytes) -> Knock | Beat | Bye:
    """What a client says; `ProtocolError` for anything else."""
    try:
        return _to_bridge.decode(frame)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(f"link: {error}") from None


class _Line:
    """One DEALER and its monitor."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        keys: tuple[KeyPair, str] | None,
        on_frames: Callable[[_Line, Frames], None],
        on_event: Callable[[_Line, int], None],
    ) -> None:
        socket = context.socket(zmq.DEALER)
        set_heartbeat(socket)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, IN_FLIGHT),
            (zmq.RCVHWM, UNREAD),
            (zmq.MAXMSGSIZE, MAX_BATCH),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1000),
            (zmq.IPV6, int("[" in address)),
        ):
            socket.setsockopt(option, value)
        if keys is not None:
            pair, server = keys
            socket.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        self.sender = Sender(socket, address, listens=False)
        self.failure = 0
        self._on_frames, self._on_event = on_frames, on_event
        self._socket = socket
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._loop = asyncio.get_running_loop()
        socket.connect(address)
        for one, callback in ((socket, self._readable), (self._monitor, self._monitored)):
            self._loop.add_reader(fd_of(one), callback)
            self._loop.call_soon(callback)

    def put(self, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """See `Sender.put`."""
        self.sender.put(envelope, payload, reserved=reserved)
        self._loop.call_soon(self._readable)  # a send may eat the edge that announces what came

    def _readable(self) -> None:
        self.sender.wake()
        while not self._socket.closed:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_frames(self, read_batch(parts)[0])

    def _monitored(self) -> None:
        while not self._monitor.closed:
            try:
                event = int(recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"])
            except zmq.Again:
                return
            self._on_event(self, event)

    def close(self, linger: int = 0) -> None:
        """End it; what was sent gets `linger` milliseconds."""
        self._loop.remove_reader(fd_of(self._monitor))
        self._loop.remove_reader(fd_of(self._socket))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self.sender.close(linger)


class LinkTransport:
    """See `Transport`. Made by `connect`; belongs to one event loop.

    Attributes:
        endpoint: by which this client is known in the node.
        root: the node's root.
        on_back: called when a link that was lost is there again.
        on_gone: called once, with the reason, when the node knows this client no more, or is gone itself.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], line: _Line, welcome: Welcome) -> None:
        self.endpoint, self.root = welcome.endpoint, welcome.root
        self.on_back: Callable[[], None] = lambda: None
        self.on_gone: Callable[[str], None] = lambda _: None
        self._context, self._line = context, line
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(BEAT, self._beat)
        self._end: asyncio.TimerHandle | None = None
        self._over = False

    @classmethod
    async def connect(
        cls, address: str, pair: KeyPair | None, server_keys: Sequence[str], seconds: float
    ) -> Self:
        """Knock at a node and be let in.

        Args:
            address: ``tcp://host:port``.
            pair: this client's keys; None for a node that has `insecure_tcp`.
            server_keys: public keys of which the node has one; while its key is being replaced there are two.
            seconds: that it may take.

        Raises:
            Unauthorized: the node does not know this client's key.
            NotReady: no node answers there, or none that has one of the server keys.
        """
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        welcomed: asyncio.Future[tuple[_Line, Welcome]] = asyncio.get_running_loop().create_future()
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failures: set[int] = set()

        def on_frames(line: _Line, frames: Frames) -> None:
            for notice in _notices(frames):
                if isinstance(notice, Welcome) and not welcomed.done():
                    welcomed.set_result((line, notice))
                elif isinstance(notice, Gone) and not welcomed.done():
                    welcomed.set_exception(
                        NotReady(f"the node at {address} does not let this client in: {notice.reason}")
                    )

        def on_event(_: _Line, event: int) -> None:
            failures.add(event)
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and not refused.done():
                refused.set_result(None)

        keys: list[tuple[KeyPair, str] | None] = [None]
        if pair is not None:
            keys = [(pair, server) for server in server_keys]
        lines: list[_Line] = []
        try:
            for one in keys:
                line = _Line(context, address, one, on_frames, on_event)
                lines.append(line)
                line.put(*encode_notice(Knock()), reserved=True)
            either: list[asyncio.Future[Any]] = [welcomed, refused]
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            line, welcome = _welcomed(address, welcomed, failures, refused=refused.done())
        except BaseException as error:
            for line in lines:
                line.close()
            context.term()
            if isinstance(error, zmq.ZMQError):
                raise NotReady(f"{address}: {error.strerror}") from None
            raise
        for other in lines:
            if other is not line:
                other.close()
        transport = cls(context, line, welcome)
        line._on_frames, line._on_event = transport._frames, transport._event  # noqa: SLF001 - the same module
        return transport

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """See `Transport.open`."""
        self._deliver, self._lost = deliver, lost

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:  # noqa: ARG002
        """See `Transport.send`: everything goes to the node, which knows the way."""
        self._line.put(envelope, payload, reserved=reserved)

    def watch(self, endpoint: str) -> None:
        """See `Transport.watch`: the loss of the link is always reported, as the root's."""

    def drop(self, endpoint: str) -> None:
        """See `Transport.drop`: who is gone, the node knows."""

    def _frames(self, _: _Line, frames: Frames) -> None:
        if b"" in frames[::2]:
            for notice in _notices(frames):
                if isinstance(notice, Gone) and notice.endpoint == self.endpoint:
                    self._gone(notice.reason)
            frames = [
                one
                for envelope, payload in zip(frames[::2], frames[1::2], strict=False)
                if envelope
                for one in (envelope, payload)
            ]
        if self._deliver is not None:
            self._deliver(frames)

    def _event(self, _: _Line, event: int) -> None:
        if self._over:
            return
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            if self._end is not None:
                self._end.cancel()
                self._end = None
            self._say(Beat(self.endpoint))
            self.on_back()
        elif self._end is None:
            reason = "no connection to the node" if event == zmq.EVENT_DISCONNECTED else "not let in again"
            self._end = self._loop.call_later(LEASE, self._gone, reason)
            if self._lost is not None:
                self._lost(self.root.endpoint)

    def _beat(self) -> None:
        self._say(Beat(self.endpoint))
        self._timer = self._loop.call_later(BEAT, self._beat)

    def _say(self, notice: Beat | Bye) -> None:
        with suppress(Overloaded):
            self._line.put(*encode_notice(notice), reserved=True)

    def _gone(self, reason: str) -> None:
        if not self._over:
            self._over = True
            self._timer.cancel()
            self.on_gone(reason)

    def close(self) -> None:
        """Say good-bye and leave."""
        self._timer.cancel()
        if self._end is not None:
            self._end.cancel()
        if not self._over:
            self._over = True
            self._say(Bye(self.endpoint))
        self._line.sender.flush()
        self._line.close(500)
        self._context.term()


def _notices(frames: Frames) -> list[Welcome | Gone]:
    """The link's own messages among frames."""
    found = []
    for envelope, payload in zip(frames[::2], frames[1::2], strict=False):
        if not envelope:
            with suppress(msgspec.DecodeError, ValueError):
                found.append(_to_client.decode(payload))
    return found


def _welcomed(
    address: str, answer: asyncio.Future[tuple[_Line, Welcome]], failures: set[int], *, refused: bool
) -> tuple[_Line, Welcome]:
    """What the node answered, or why it did not."""
    if answer.done():
        return answer.result()
    if refused:
        raise Unauthorized(f"the node at {address} does not know this client's key: list it in [node] peers")
    if failures - {zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED}:
        raise NotReady(f"what answers at {address} has another key than server_key says, or is no node")
    raise NotReady(f"no node answers at {address}")
