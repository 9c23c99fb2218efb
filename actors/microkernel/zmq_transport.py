"""ZMQ between processes: each binds one ROUTER to receive and connects one DEALER per peer to send.

A DEALER with one peer has a true EAGAIN and a queue of its own, which a replying ROUTER has not. Sockets are raw and are
drained from `loop.add_reader`; `zmq.asyncio` costs three times the CPU. Messages queued for a peer in one turn of the loop leave
as one batch: a step's updates to one process are one frame and one system call, whoever sends them.

`ZMQ_FD` is edge-triggered: on wake-up everything is read until EAGAIN, and `EVENTS` is looked at again after registering.

Many endpoints may lie behind one socket: ``ipc:///node/clients.7.ipc|laptop/3f`` is reached at what stands before the bar (see `bridge`).
A pair of frames whose first is empty is no message but the notice that the endpoint in the second, behind the sender, is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket as sockets
from collections import deque
from contextlib import suppress

import zmq
from zmq.utils.monitor import recv_monitor_message

from sgl_actors.actors.microkernel.ipc import check_folder, check_peer, socket_path
from sgl_actors.actors.microkernel.transport import MAX_FRAME, Deliver, Frames, Lost, Outbox, pack, unpack
from sgl_actors.errors import ActorDown, ConfigError, Overloaded

CAPACITY = 8192
"""Messages queued for one peer at most; as many again for replies and control."""

BATCH = 64
"""Messages that leave as one batch at most, and batches read in one turn."""

BATCH_BYTES = 1 << 20
"""Bytes of one such batch, unless it is a single message."""

MAX_BATCH = MAX_FRAME + BATCH_BYTES
"""Bytes of what a socket takes: the longest message, with its envelope."""

IN_FLIGHT = 32
"""Batches that libzmq itself holds for a peer that does not take them; what comes after them waits in the outbox, where bytes are counted."""

UNREAD = 1024
"""Batches of one peer that a receiving socket holds. Many, because libzmq (4.3, its issue 3937) may end a process where a connection breaks while its input is held back
by this limit: so that happens only to one that has not read for long, which is about to be killed anyway."""

PEERS = 4096
"""Endpoints that this process talks to at most."""

MOST_BAD = 64
"""Bad frames that a connection may bring; then it is cut."""

PARDON = 16
"""Good messages that make up for a bad one, on a connection of the node's own."""

SUSPECTS = 256
"""Connections whose bad frames are counted."""

HEARTBEAT_MS, TIMEOUT_MS = 1000, 10_000
"""ZMTP heartbeats: they see a dead link, not a hung event loop. A link that breaks loses what is on its way, so a machine that is merely busy must not break one; a
process of the node that is stopped is found sooner by its state."""

BEHIND = "|"
"""Parts the socket of a relay from the name of who is behind it."""


def fd_of(socket: zmq.Socket[bytes]) -> int:
    """The descriptor that signals a change of the socket's events (edge-triggered)."""
    return int(socket.getsockopt(zmq.FD))


def read_batch(parts: Frames) -> tuple[Frames, int]:
    """The frames of a batch, as a socket gave it, and whether it was none (1 or 0)."""
    try:
        (raw,) = parts
        return unpack(raw), 0
    except ValueError:
        return [], 1


def cut(frame: zmq.Frame) -> None:
    """End the connection that a frame came by, which a ROUTER has no way to: its DEALER connects anew, and begins anew to be counted."""
    with suppress(OSError), sockets.socket(fileno=os.dup(int(frame.get(zmq.SRCFD)))) as connection:
        connection.shutdown(sockets.SHUT_RDWR)


def set_heartbeat(socket: zmq.Socket[bytes]) -> None:
    """Have a socket notice a peer that is stopped, or a link that is dead."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, TIMEOUT_MS)


class Sender:
    """Sending side of one DEALER: what waits leaves in batches, at the end of the loop's turn, and when there is room again.

    Who reads from the same socket calls `wake` whenever its descriptor does; else the sender listens to it while it has to wait.
    """

    def __init__(self, socket: zmq.Socket[bytes], name: str, *, listens: bool = True) -> None:
        self.socket = socket
        self._room = Outbox(name, CAPACITY)
        self._outbox: deque[tuple[bytes, bytes]] = deque()
        self._listens = listens
        self._scheduled = self._blocked = False
        self._loop = asyncio.get_running_loop()

    def put(self, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """Queue one message; raises as `Outbox.add`."""
        self._room.add(envelope, payload, reserved=reserved)
        self._outbox.append((envelope, payload))
        if not self._scheduled and not self._blocked:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        self._scheduled = False
        while self._outbox and not self.socket.closed:
            frames: Frames = []
            size = 0
            for envelope, payload in self._outbox:
                grown = size + len(envelope) + len(payload)
                if frames and (grown > BATCH_BYTES or len(frames) >= 2 * BATCH):
                    break
                size = grown
                frames += (envelope, payload)
            try:
                self.socket.send(pack(frames), zmq.NOBLOCK)
            except zmq.Again:
                self._wait()
                return
            count = len(frames) // 2
            self._room.take(count, size)
            for _ in range(count):
                self._outbox.popleft()

    def _wait(self) -> None:
        if self._blocked:
            return
        self._blocked = True
        if self._listens:
            self._loop.add_reader(fd_of(self.socket), self.wake)
        self._loop.call_soon(self.wake)

    def wake(self) -> None:
        """The socket's events may have changed."""
        if not self._blocked or self.socket.closed:
            return
        if int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            self._unblock()
            self.flush()

    def _unblock(self) -> None:
        if self._blocked and self._listens:
            self._loop.remove_reader(fd_of(self.socket))
        self._blocked = False

    def close(self, linger: int) -> None:
        """Close the socket, which gets `linger` milliseconds for what it has."""
        self._unblock()
        self.socket.close(linger)


class _Peer(Sender):
    """One connection. `users` are the endpoints that are reached by it; `watched` those whose loss is told."""

    def __init__(self, socket: zmq.Socket[bytes], place: str) -> None:
        super().__init__(socket, place)
        self.place = place
        self.users: set[str] = set()
        self.watched: set[str] = set()
        self.monitor: zmq.Socket[bytes] | None = None


class ZmqTransport:
    """See `Transport`. Belongs to one event loop and one thread.

    Attributes:
        cuts: connections that were cut for what they brought.
        unreachable: messages for an endpoint that is not there (any more).

    Raises:
        ConfigError: the endpoint is no ``ipc://`` path, or its folder is not this user's alone.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.cuts = self.unreachable = 0
        path = socket_path(endpoint)
        check_folder(path.parent)
        self._folder = path.parent
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.RCVHWM, UNREAD)
        self._router.setsockopt(zmq.MAXMSGSIZE, MAX_BATCH)
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            self._router.close(0)
            self._context.term()
            raise ConfigError(f"cannot listen at {endpoint}: {error.strerror}") from None
        self._peers: dict[str, _Peer] = {}
        self._routes: dict[str, _Peer] = {}
        self._suspects: dict[bytes, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """See `Transport.open`."""
        self._deliver, self._lost = deliver, lost
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd_of(self._router), self._readable)
        self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        if self._loop is None or self._deliver is None:
            return
        for _ in range(BATCH):
            try:
                name, raw, origin = self._receive()
            except zmq.Again:
                return
            frames, bad = read_batch(raw)
            if b"" in frames[::2]:
                frames = self._notices(frames)
            try:
                bad += self._deliver(frames) or 0
            except BaseException:
                self._loop.call_soon(
                    self._readable
                )  # or what has come already would wait for what comes next
                raise
            if bad or self._suspects:
                self._weigh(name, bad, origin)
            if self._router.closed:
                return
        self._loop.call_soon(self._readable)

    def _receive(self) -> tuple[bytes, Frames, zmq.Frame | None]:
        """Who sent it, what it is, and, while anybody is under suspicion, by which connection it came (which takes longer to ask)."""
        if self._suspects:
            origin = self._router.recv(zmq.NOBLOCK, copy=False)
            return origin.bytes, self._router.recv_multipart(zmq.NOBLOCK) if origin.more else [], origin
        name, *frames = self._router.recv_multipart(zmq.NOBLOCK)
        return name, frames, None

    def _notices(self, frames: Frames) -> Frames:
        """Take the notices out of a batch."""
        rest: Frames = []
        for envelope, payload in zip(frames[::2], frames[1::2], strict=False):
            if envelope:
                rest += (envelope, payload)
                continue
            endpoint = payload.decode("utf-8", "replace")
            peer = self._peers.get(_place(endpoint))
            if peer is not None and endpoint in peer.watched and self._lost is not None:
                self._lost(endpoint)
        return rest

    def _weigh(self, name: bytes, bad: int, origin: zmq.Frame | None) -> None:
        """Hold bad frames against the connection they came by: one that brings many is cut. Good ones make up for them, slowly."""
        held = self._suspects.pop(name, 0) + (bad * PARDON if bad else -1)
        if held >= MOST_BAD * PARDON and origin is not None:
            self.cuts += 1
            cut(origin)
        elif held > 0:
            self._suspects[name] = held
            if len(self._suspects) > SUSPECTS:
                del self._suspects[next(iter(self._suspects))]

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """See `Transport.send`. What is for an endpoint that is not there is lost, as on its way to a process that ends."""
        peer = self._routes.get(endpoint)
        if peer is None:
            try:
                peer = self._peer(endpoint)
            except ActorDown:
                self.unreachable += 1
                return
        peer.put(envelope, payload, reserved=reserved)

    def _peer(self, endpoint: str) -> _Peer:
        place = _place(endpoint)
        peer = self._peers.get(place)
        if peer is None:
            peer = self._connect(place)
        if endpoint not in peer.users:
            if len(peer.users) >= PEERS:
                raise Overloaded(f"too many behind {place} ({PEERS})")
            peer.users.add(endpoint)
            self._routes[endpoint] = peer
        return peer

    def _connect(self, place: str) -> _Peer:
        check_peer(place, self._folder)
        if len(self._peers) >= PEERS:
            raise Overloaded(f"this process talks to {PEERS} others already")
        socket = self._context.socket(zmq.DEALER)
        set_heartbeat(socket)
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.SNDHWM, IN_FLIGHT),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1000),
        ):
            socket.setsockopt(option, value)
        socket.connect(place)
        peer = self._peers[place] = _Peer(socket, place)
        return peer

    def watch(self, endpoint: str) -> None:
        """See `Transport.watch`."""
        peer = self._peer(endpoint)
        peer.watched.add(endpoint)
        if peer.monitor is None and self._loop is not None:
            peer.monitor = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._loop.add_reader(fd_of(peer.monitor), self._monitored, peer)
            self._loop.call_soon(self._monitored, peer)

    def _monitored(self, peer: _Peer) -> None:
        while peer.monitor is not None and not peer.monitor.closed:
            try:
                event = recv_monitor_message(peer.monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_DISCONNECTED and self._lost is not None:
                for endpoint in list(peer.watched):
                    self._lost(endpoint)

    def drop(self, endpoint: str) -> None:
        """See `Transport.drop`."""
        peer = self._peers.get(_place(endpoint))
        if peer is None:
            return
        self._routes.pop(endpoint, None)
        peer.users.discard(endpoint)
        peer.watched.discard(endpoint)
        if not peer.users:
            del self._peers[peer.place]
            self._disconnect(peer, linger=0)

    def _disconnect(self, peer: _Peer, *, linger: int) -> None:
        if peer.monitor is not None:
            if self._loop is not None:
                self._loop.remove_reader(fd_of(peer.monitor))
            peer.socket.disable_monitor()
            peer.monitor.close(0)
        peer.close(linger)

    def close(self) -> None:
        """Send what is queued, close every socket (monitors first: `term` hangs on an open one) and the context."""
        for peer in self._peers.values():
            peer.flush()
            self._disconnect(peer, linger=500)
        self._peers.clear()
        self._routes.clear()
        if self._loop is not None:
            self._loop.remove_reader(fd_of(self._router))
            self._loop = None
        self._router.close(0)
        self._context.term()


def _place(endpoint: str) -> str:
    """The socket by which an endpoint is reached."""
    return endpoint.partition(BEHIND)[0]
