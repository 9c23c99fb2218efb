"""ZMQ between processes: each binds one ROUTER to receive and connects one DEALER per peer to send.

A DEALER with one peer has a true EAGAIN and a queue of its own, which a replying ROUTER has not. Sockets are raw and are
drained from `loop.add_reader`; `zmq.asyncio` costs three times the CPU. Messages queued for a peer in one turn of the loop leave
as one multipart message: a step's updates to one process are one system call, whoever sends them.

`ZMQ_FD` is edge-triggered: on wake-up everything is read until EAGAIN, and `EVENTS` is looked at again after registering.
"""

from __future__ import annotations

import asyncio
from collections import deque

import zmq
from zmq.utils.monitor import recv_monitor_message

from sgl_actors.actors.microkernel.transport import Deliver, Frames, Lost
from sgl_actors.errors import InvalidRequest, Overloaded

CAPACITY = 8192
"""Messages queued for one peer at most; as many again for replies and control."""

BATCH = 64
"""Messages that leave as one multipart message at most, and multipart messages read in one turn."""

MAX_FRAME = 64 << 20
"""Bytes of one frame; a larger one ends the connection it came from."""

HEARTBEAT_MS, TIMEOUT_MS = 1000, 3000
"""ZMTP heartbeats: they see a stopped process or a dead link, not a hung event loop."""


def _fd(socket: zmq.Socket[bytes]) -> int:
    """The descriptor that signals a change of the socket's events (edge-triggered)."""
    return int(socket.getsockopt(zmq.FD))


class _Peer:
    """Sending side of one connection."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.outbox: deque[tuple[bytes, bytes]] = deque()
        self.scheduled = False
        self.blocked = False
        self.monitor: zmq.Socket[bytes] | None = None


class ZmqTransport:
    """See `Transport`. Belongs to one event loop and one thread."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.RCVHWM, CAPACITY)
        self._router.setsockopt(zmq.MAXMSGSIZE, 2 * MAX_FRAME)
        self._router.bind(endpoint)
        self._peers: dict[str, _Peer] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """See `Transport.open`."""
        self._deliver, self._lost = deliver, lost
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(_fd(self._router), self._readable)
        self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        if self._loop is None or self._deliver is None:
            return
        for _ in range(BATCH):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._deliver(frames[1:])
            if self._router.closed:
                return
        self._loop.call_soon(self._readable)

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """See `Transport.send`."""
        if len(payload) > MAX_FRAME:
            raise InvalidRequest(f"a message of {len(payload)} bytes; at most {MAX_FRAME} travel")
        peer = self._peers.get(endpoint) or self._connect(endpoint)
        if len(peer.outbox) >= CAPACITY * (2 if reserved else 1):
            raise Overloaded(f"queue to {endpoint} is full ({CAPACITY} messages)")
        peer.outbox.append((envelope, payload))
        if not peer.scheduled and not peer.blocked and self._loop is not None:
            peer.scheduled = True
            self._loop.call_soon(self._flush, peer)

    def _connect(self, endpoint: str) -> _Peer:
        socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.SNDHWM, CAPACITY // BATCH),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, TIMEOUT_MS),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1000),
        ):
            socket.setsockopt(option, value)
        peer = self._peers[endpoint] = _Peer(socket)
        socket.connect(endpoint)
        return peer

    def _flush(self, peer: _Peer) -> None:
        peer.scheduled = False
        while peer.outbox and not peer.socket.closed:
            count = min(BATCH, len(peer.outbox))
            frames: Frames = []
            for envelope, payload in (peer.outbox[i] for i in range(count)):
                frames += (envelope, payload)
            try:
                peer.socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                self._wait_writable(peer)
                return
            for _ in range(count):
                peer.outbox.popleft()

    def _wait_writable(self, peer: _Peer) -> None:
        if peer.blocked or self._loop is None:
            return
        peer.blocked = True
        self._loop.add_reader(_fd(peer.socket), self._writable, peer)
        self._loop.call_soon(self._writable, peer)

    def _writable(self, peer: _Peer) -> None:
        if not peer.blocked or peer.socket.closed or self._loop is None:
            return
        if int(peer.socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            peer.blocked = False
            self._loop.remove_reader(_fd(peer.socket))
            self._flush(peer)

    def watch(self, endpoint: str) -> None:
        """See `Transport.watch`."""
        peer = self._peers.get(endpoint) or self._connect(endpoint)
        if peer.monitor is None and self._loop is not None:
            peer.monitor = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._loop.add_reader(_fd(peer.monitor), self._monitored, endpoint, peer)
            self._loop.call_soon(self._monitored, endpoint, peer)

    def _monitored(self, endpoint: str, peer: _Peer) -> None:
        while peer.monitor is not None and not peer.monitor.closed:
            try:
                event = recv_monitor_message(peer.monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_DISCONNECTED and self._lost is not None:
                self._lost(endpoint)

    def drop(self, endpoint: str) -> None:
        """See `Transport.drop`."""
        peer = self._peers.pop(endpoint, None)
        if peer is not None:
            self._disconnect(peer, linger=0)

    def _disconnect(self, peer: _Peer, *, linger: int) -> None:
        if self._loop is not None:
            if peer.monitor is not None:
                self._loop.remove_reader(_fd(peer.monitor))
            if peer.blocked:
                self._loop.remove_reader(_fd(peer.socket))
        if peer.monitor is not None:
            peer.socket.disable_monitor()
            peer.monitor.close(0)
        peer.socket.close(linger)

    def close(self) -> None:
        """Send what is queued, close every socket (monitors first: `term` hangs on an open one) and the context."""
        for peer in self._peers.values():
            self._flush(peer)
            self._disconnect(peer, linger=500)
        self._peers.clear()
        if self._loop is not None:
            self._loop.remove_reader(_fd(self._router))
            self._loop = None
        self._router.close(0)
        self._context.term()
