"""The way into a node over tcp: clients on one side, each with one encrypted connection, the node's processes on the other.

A process of the node answers a client at the client's *endpoint*, as it answers anybody; that endpoint lies behind the bridge's own ipc socket
(``ipc:///node/clients.7.ipc|laptop/3f``), so nothing in the node knows of tcp. A client needs no address that could be reached, and may sit behind NAT.

What a client may do is decided here, before anything enters the node. Its messages are decoded once (the envelope; the payload of a question,
too): they have to come from an endpoint that belongs to the key of the connection they came by, be for an actor of the node, and be allowed
by `Admit`, which may change them. Whatever is none of this is counted and dropped, and who asks is told.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog
import zmq

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.control import KERNEL
from sgl_actors.actors.microkernel.curve import Doorkeeper, KeyPair
from sgl_actors.actors.microkernel.link import (
    IN_FLIGHT,
    LEASE,
    VERSION,
    Beat,
    Bye,
    Gone,
    Knock,
    Welcome,
    decode_knock,
    encode_notice,
)
from sgl_actors.actors.microkernel.transport import Frames, Outbox, pack
from sgl_actors.actors.microkernel.wire import VERSION as WIRE
from sgl_actors.actors.microkernel.wire import (
    Down,
    Envelope,
    Fault,
    Kind,
    Message,
    decode_envelope,
    decode_message,
    encode,
)
from sgl_actors.actors.microkernel.zmq_transport import (
    BATCH,
    BEHIND,
    MOST_BAD,
    SUSPECTS,
    ZmqTransport,
    cut,
    fd_of,
    read_batch,
    set_heartbeat,
)
from sgl_actors.errors import ConfigError, Forbidden, Overloaded, ProtocolError, SglActorsError

MAX_TCP_FRAME = 16 << 20
"""Bytes of one frame from a client; a larger one ends its connection."""

SESSIONS, SESSIONS_EACH = 1024, 64
"""Clients at a time, in all and of one key."""

OPEN, MONITORS = 1024, 256
"""Questions of one client that are open, and actors that it monitors."""

CAPACITY = 8192
"""Messages that wait for one client at most."""

BAR = 30.0
"""Seconds for which a key that brought `MOST_BAD` bad frames is not let in."""

HANDSHAKE_MS = 5000
"""Within which a connection has to have shown its key."""

RETRY, SWEEP = 0.02, 1.0
"""Seconds between two tries to send to a client that does not read, and between two looks for clients that are gone."""

NOBODY = "anybody"
"""Name of every client of a bridge without keys."""

_QUESTIONS = (Kind.CALL, Kind.STREAM, Kind.SEND)
_ENDS = (Kind.REPLY, Kind.END, Kind.FAULT)


class Admit(Protocol):
    """What a client may say to whom."""

    def __call__(self, peer: str, endpoint: str, to: str, kind: int, message: Message) -> Message:
        """`message` as it is to be handed on.

        Args:
            peer: whose key the client has.
            endpoint: of the client.
            to: name of the actor.
            kind: how it is said (`wire.Kind`): an exception in a cast ends an actor, in a call its asker is told.
            message: what is said.

        Raises:
            SglActorsError: it is not; sent back to who asks.
        """


class Session:
    """One client: whose key it has, its connection of now, and what is open or waits for it."""

    def __init__(self, endpoint: str, peer: str, route: bytes, now: float) -> None:
        self.endpoint, self.peer, self.route, self.seen = endpoint, peer, route, now
        self.questions: set[int] = set()
        self.monitors = 0
        self.room = Outbox(endpoint, CAPACITY)
        self.outbox: deque[tuple[bytes, bytes]] = deque()


class Bridge:
    """See the module. Belongs to one event loop.

    Args:
        listen: ``tcp://host:port``.
        inner: the bridge's own socket in the node, not yet open.
        root: the node's root.
        pair: the node's keys; None to take anybody, unencrypted.
        peers: name by public key of those who may come in.
        admit: what they may say.
        clock: monotonic seconds.
        log: where clients come and go.

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(
        self,
        listen: str,
        inner: ZmqTransport,
        root: Address,
        *,
        pair: KeyPair | None,
        peers: Mapping[str, str],
        admit: Admit,
        clock: Callable[[], float],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.sessions: dict[str, Session] = {}
        self._inner, self._root, self._admit, self._clock, self._log = inner, root, admit, clock, log
        self._barred: dict[str, float] = {}
        self._suspects: dict[bytes, int] = {}
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._door = (
            None
            if pair is None
            else Doorkeeper(self._context, peers, pair, lambda name: name in self._barred)
        )
        self._router = self._context.socket(zmq.ROUTER)
        try:
            self._bind(listen)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise ConfigError(f"node.listen: cannot listen at {listen}: {error.strerror}") from None
        self._timer = self._loop.call_later(SWEEP, self._sweep)
        inner.open(self._outward, lambda _: None)
        self._loop.add_reader(fd_of(self._router), self._readable)
        self._loop.call_soon(self._readable)

    def _bind(self, listen: str) -> None:
        set_heartbeat(self._router)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, IN_FLIGHT),
            (zmq.RCVHWM, IN_FLIGHT),
            (zmq.MAXMSGSIZE, MAX_TCP_FRAME),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.IPV6, int("[" in listen)),
        ):
            self._router.setsockopt(option, value)
        if self._door is not None:
            self._door.guard(self._router)
        self._router.bind(listen)

    def statistics(self) -> dict[str, float]:
        """Clients of now, and what was counted since the start."""
        door = {} if self._door is None else {f"keys_{name}": n for name, n in self._door.counters.items()}
        return {"clients": len(self.sessions), **door, **self.counters}

    # -- from clients -------------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(BATCH):
            if self._router.closed:
                return
            try:
                origin = self._router.recv(zmq.NOBLOCK, copy=False)
                parts = self._router.recv_multipart(zmq.NOBLOCK) if origin.more else []
            except zmq.Again:
                return
            peer = NOBODY if self._door is None else str(origin.get("User-Id"))
            frames, bad = read_batch(parts)
            bad += self.inward(origin.bytes, peer, frames)
            if bad:
                self._blame(origin, peer, bad)
        self._loop.call_soon(self._readable)

    def inward(self, route: bytes, peer: str, frames: Frames) -> int:
        """Take what came by the connection `route`, which has the key of `peer`. Returns how many messages of it were none."""
        bad = 0
        for envelope, payload in zip(frames[::2], frames[1::2], strict=True):
            try:
                if envelope:
                    self._message(route, peer, envelope, payload)
                else:
                    self._notice(route, peer, decode_knock(payload))
            except Overloaded:
                self.counters["overloaded"] += 1
            except Exception as error:  # noqa: BLE001 - whatever a peer sends, the pump goes on
                bad += 1
                self.counters["bad_frames"] += 1
                if self.counters["bad_frames"] <= MOST_BAD:
                    self._log.warning("bad frame", peer=peer, error=repr(error)[:300])
        return bad

    def _notice(self, route: bytes, peer: str, notice: Knock | Beat | Bye) -> None:
        if isinstance(notice, Knock):
            self._welcome(route, peer, notice.version)
            return
        session = self._session(notice.endpoint, route, peer)
        if session is not None and isinstance(notice, Bye):
            self._end(session, "left")

    def _welcome(self, route: bytes, peer: str, version: int) -> None:
        taken = sum(session.peer == peer for session in self.sessions.values())
        if version != VERSION or len(self.sessions) >= SESSIONS or taken >= SESSIONS_EACH:
            self.counters["turned_away"] += 1
            spoken = f"it speaks version {VERSION}, not {version}"
            reason = spoken if version != VERSION else "there are as many clients as it takes"
            self._write(route, [*encode_notice(Gone("", reason))])
            return
        endpoint = f"{self._inner.endpoint}{BEHIND}{peer}/{secrets.token_hex(12)}"
        self.sessions[endpoint] = Session(endpoint, peer, route, self._clock())
        self._log.info("client came", peer=peer, clients=len(self.sessions))
        self._post(self.sessions[endpoint], *encode_notice(Welcome(endpoint, self._root)))

    def _session(self, endpoint: str, route: bytes, peer: str) -> Session | None:
        """The client that says it is `endpoint`, None if there is none (any more); `ProtocolError` if it is somebody else's."""
        session = self.sessions.get(endpoint)
        if session is None:
            self.counters["unknown_clients"] += 1
            self._write(
                route, [*encode_notice(Gone(endpoint, "the node does not know this client (any more)"))]
            )
            return None
        if session.peer != peer:
            self.counters["forged"] += 1
            raise ProtocolError(f"{peer} says it is {session.peer}")
        session.seen, session.route = self._clock(), route
        return session

    def _message(self, route: bytes, peer: str, first: bytes, second: bytes) -> None:
        envelope = decode_envelope(first)
        session = self._session(envelope.frm.endpoint, route, peer)
        if session is None:
            return
        if BEHIND in envelope.to.endpoint or envelope.to.endpoint == self._inner.endpoint:
            raise ProtocolError("a message to another client")
        kind = envelope.kind
        if kind == Kind.CAST or kind in _QUESTIONS:
            try:
                first, second = self._asked(session, envelope, second)
            except ProtocolError:
                raise
            except SglActorsError as error:
                self.counters["refused"] += 1
                if kind in _QUESTIONS:
                    session.questions.discard(envelope.id)
                    self._refuse(session, envelope, error)
                return
        elif kind == Kind.CANCEL:
            session.questions.discard(envelope.id)
        elif kind == Kind.MONITOR:
            session.monitors += 1
            if session.monitors > MONITORS or envelope.to.name == KERNEL:
                raise ProtocolError("monitors too much")
        elif kind == Kind.DOWN:
            down = decode_message(envelope.tag, second)
            if not isinstance(down, Down) or down.address.endpoint != session.endpoint:
                raise ProtocolError("tells the end of somebody else")
        elif kind != Kind.CREDIT:
            raise ProtocolError(f"answers of kind {kind}: nobody asks a client")
        self._inner.send(envelope.to.endpoint, first, second, reserved=envelope.control or kind > Kind.STREAM)

    def _asked(self, session: Session, envelope: Envelope, payload: bytes) -> tuple[bytes, bytes]:
        """The frames of a cast or a question as they are to be handed on."""
        if envelope.to.name == KERNEL:
            self.counters["to_kernels"] += 1
            raise Forbidden("nobody outside talks to a node's kernels")
        if envelope.tag not in Message.TYPES:
            raise Forbidden(f"no client says {envelope.tag}")
        message = decode_message(envelope.tag, payload)
        if envelope.kind != Kind.CAST:
            if len(session.questions) >= OPEN:
                raise Overloaded(f"{OPEN} questions of this client are open")
            if envelope.id in session.questions:
                raise ProtocolError("asks twice under one number")
            session.questions.add(envelope.id)
        admitted = self._admit(session.peer, session.endpoint, envelope.to.name, envelope.kind, message)
        return encode(envelope, admitted)

    def _refuse(self, session: Session, envelope: Envelope, error: SglActorsError) -> None:
        answer = Envelope(WIRE, Kind.FAULT, envelope.id, envelope.frm, envelope.to, Fault.TAG)
        self._post(session, *encode(answer, Fault.of(error)))

    def _blame(self, origin: zmq.Frame, peer: str, bad: int) -> None:
        """Count bad frames against a connection; one that brings many is cut, and its key barred for a while."""
        route = origin.bytes
        count = self._suspects.pop(route, 0) + bad
        if count < MOST_BAD:
            self._suspects[route] = count
            if len(self._suspects) > SUSPECTS:
                del self._suspects[next(iter(self._suspects))]
            return
        self.counters["cut"] += 1
        self._log.error("peer brings bad frames, barred", peer=peer, seconds=BAR)
        if self._door is not None:
            self._barred[peer] = self._clock() + BAR
        for session in [one for one in self.sessions.values() if one.route == route]:
            self._end(session, "brought bad frames")
        cut(origin)

    # -- to clients ---------------------------------------------------------------------------------------

    def _outward(self, frames: Frames) -> int:
        """Hand on what the node's processes say to clients."""
        bad = 0
        for first, second in zip(frames[::2], frames[1::2], strict=False):
            try:
                envelope = decode_envelope(first)
            except ProtocolError:
                bad += 1
                continue
            session = self.sessions.get(envelope.to.endpoint)
            if session is None:
                self.counters["for_nobody"] += 1
                self._tell_gone(envelope.to.endpoint)
                continue
            if envelope.kind in _ENDS:
                session.questions.discard(envelope.id)
            self._post(session, first, second)
        return bad

    def _post(self, session: Session, envelope: bytes, payload: bytes) -> None:
        """Queue for a client; one that has let so much pile up is cut off."""
        try:
            session.room.add(envelope, payload, reserved=True)
        except SglActorsError:
            self._end(session, "does not read")
            return
        if not session.outbox:
            self._loop.call_soon(self._flush, session)
        session.outbox.append((envelope, payload))

    def _flush(self, session: Session) -> None:
        while session.outbox and not self._router.closed:
            pairs = [pair for pair, _ in zip(session.outbox, range(BATCH), strict=False)]
            sent = self._write(session.route, [frame for pair in pairs for frame in pair])
            if sent is None:
                self._loop.call_later(RETRY, self._flush, session)
                return
            if not sent:
                self.counters["lost"] += len(pairs)
            for _ in pairs:
                envelope, payload = session.outbox.popleft()
                session.room.take(1, len(envelope) + len(payload))

    def _write(self, route: bytes, frames: Frames) -> bool | None:
        """Whether there is such a connection, and so it was sent; None if it has to wait."""
        try:
            self._router.send_multipart([route, pack(frames)], zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError:  # EHOSTUNREACH: the link is broken just now
            return False
        self._loop.call_soon(self._readable)  # a send may eat the edge that announces what came
        return True

    # -- coming and going ---------------------------------------------------------------------------------

    def _sweep(self) -> None:
        now = self._clock()
        for session in [one for one in self.sessions.values() if one.seen + LEASE < now]:
            self._end(session, "no sign of life")
        for peer in [name for name, until in self._barred.items() if until < now]:
            del self._barred[peer]
        self._timer = self._loop.call_later(SWEEP, self._sweep)

    def _end(self, session: Session, reason: str) -> None:
        if self.sessions.pop(session.endpoint, None) is None:
            return
        self._log.info("client gone", peer=session.peer, reason=reason, clients=len(self.sessions))
        session.outbox.clear()
        self._write(session.route, [*encode_notice(Gone(session.endpoint, reason))])
        self._tell_gone(session.endpoint)

    def _tell_gone(self, endpoint: str) -> None:
        """Have the root forget a client; it tells the others."""
        try:
            self._inner.send(self._root.endpoint, b"", endpoint.encode(), reserved=True)
        except Overloaded:
            self.counters["overloaded"] += 1

    def close(self) -> None:
        """Tell clients, and leave."""
        self._timer.cancel()
        for session in list(self.sessions.values()):
            self._end(session, "the node's bridge ends")
        self._loop.remove_reader(fd_of(self._router))
        self._inner.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._router.close(500)
        if self._door is not None:
            self._door.close()
        self._context.term()


def check_listen(listen: str, *, keyed: bool, insecure: bool) -> None:
    """Raise `ConfigError` unless a bridge may listen there: on every interface never, without keys only on loopback if told so."""
    host, _, port = listen.removeprefix("tcp://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not listen.startswith("tcp://") or not port.isascii() or not port.isdecimal() or not host:
        raise ConfigError(f'expected "tcp://host:port", got {listen!r}')
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"expected a port from 1 to 65535, got {port}")
    if host in ("*", "0.0.0.0", "::"):  # noqa: S104 - they are refused
        raise ConfigError(f"{host} is every interface there is; name the address to listen at")
    if not keyed and not insecure:
        raise ConfigError(
            "nobody listens on tcp without keys: draw some with `sgl-actors keys new NAME`, set [node] key and [node] peers"
        )
    if not keyed and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"insecure_tcp is for loopback only, not for {host}")
