"""One HTTP connection, with bounds: how large a head may be, how long a client may take to send and to read, how many may be open.

A connection is in one of three phases: between requests (or new), within a request's head, within its body. Whoever takes too long in one, or leaves
what was written to it unread, is cut off by `Connection.overdue`, which the server asks once a second: no timer per connection, no thread.
Prior art: nginx's client_header_timeout, client_body_timeout, send_timeout and reset_timedout_connection.
"""

from __future__ import annotations

import enum
import select
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sgl_actors.actors.gateway.errors import ErrorBody, ErrorObject

MAX_FIELDS = 128
"""Header fields of a request."""
MAX_PIPELINED = 16
"""Requests that a client may send ahead of the answers."""
BODY_GRACE = 10.0
SLOWEST_BODY = 1024
"""Bytes per second that a body has to come at, once the grace time is over."""
LINGER = 5.0
"""Seconds in which the rest of a body that was answered early is thrown away."""
UNSENT = 128 << 10
"""Bytes that the system may hold of an answer beyond what it has sent; the rest stays here, where it is counted."""


@dataclass(frozen=True)
class Limits:
    """What one connection may do; seconds, bytes, connections.

    Attributes:
        connections: open at once; a new one takes the place of the one that has waited longest between requests.
        headers: of a request line with its header fields.
        header_timeout: from its first byte (or the connection's beginning) to the end of the head.
        body_timeout: for a body.
        send_timeout: that written bytes may stay unread.
        keep_alive: that a connection may stay open between requests.
    """

    connections: int = 4096
    headers: int = 32 << 10
    header_timeout: float = 15.0
    body_timeout: float = 60.0
    send_timeout: float = 30.0
    keep_alive: float = 75.0


@dataclass
class Lobby:
    """What the connections of a server have in common.

    Attributes:
        limits: in force for all of them.
        now: monotonic seconds.
        strangers: those that have not sent a whole head yet, the longest waiting first.
        idle: those that wait for their next request.
        cut: how many were cut off, by reason.
    """

    limits: Limits
    now: Callable[[], float]
    strangers: dict[Connection, None] = field(default_factory=dict)
    idle: dict[Connection, None] = field(default_factory=dict)
    cut: Counter[str] = field(default_factory=Counter)

    def longest_waiting(self) -> Connection:
        """Who has no request in work, and has had none for the longest time."""
        return min(
            (next(iter(group)) for group in (self.idle, self.strangers) if group), key=lambda one: one.since
        )


class Phase(enum.Enum):
    """What is expected of the client."""

    WAITING = "a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    DONE = "nothing"


class Connection(HttpToolsProtocol):
    """uvicorn's protocol within `Limits`."""

    def __init__(self, *, lobby: Lobby, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._lobby = lobby
        self._phase = Phase.WAITING
        self._since = self._looked = lobby.now()
        self._unread_since = 0.0
        self._head = self._fields = self._body = self._fed = 0
        self._shut = False
        self._cycles: list[
            Any
        ] = []  # requests without their whole answer: the one in work, and those behind it

    def __repr__(self) -> str:
        return f"<Connection {self.client} expects {self._phase.value}>"

    def connection_made(self, transport: Any) -> None:
        """Take a place; where there is none, who waits longest makes room."""
        super().connection_made(transport)
        _bound_unsent(transport)
        lobby = self._lobby
        lobby.strangers[self] = None
        if len(self.connections) > lobby.limits.connections:
            lobby.longest_waiting().yield_place()

    @property
    def since(self) -> float:
        """When it began to wait for what is expected now."""
        return self._since

    def yield_place(self) -> None:
        """Make room for another connection."""
        self._leave_lobby()
        if self._phase is Phase.WAITING and self.cycle is not None:
            self._lobby.cut["idle"] += 1
            self._shut = True
            unread = self.transport.get_write_buffer_size() > 0
            (self.transport.abort if unread else self.transport.close)()
        else:
            self.refuse(
                "connections",
                503,
                "not_ready",
                "too many connections are open ([gateway] max_connections)",
                retry=1,
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of it."""
        self._leave_lobby()
        super().connection_lost(exc)
        self._tell_requests()

    def _tell_requests(self) -> None:
        """Nobody waits for an answer any more. uvicorn tells the last request only, which may stand behind the one in work."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._cycles.clear()

    def data_received(self, data: bytes) -> None:
        """Parse; bytes of which the parser gives nothing back are bounded, too: an endless header field, an endless trailer."""
        if self._shut:
            return
        self._fed += len(data)
        super().data_received(data)
        if self._fed > self._lobby.limits.headers:
            self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._phase, self._since = Phase.HEAD, self._lobby.now()
        self._head = self._fields = self._body = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        if self._measured(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field, or one of a trailer."""
        self._fields += 1
        if self._measured(len(name) + len(value) + 4):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the request is in work from here on."""
        if self._shut:
            return
        self._phase, self._since = Phase.BODY, self._lobby.now()
        self._fed = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            self.refuse(
                "pipeline", 429, "overloaded", f"more than {MAX_PIPELINED} requests ahead of their answers"
            )
            return
        self._leave_lobby()
        super().on_headers_complete()
        self._cycles = [*(one for one in self._cycles if not one.response_complete), self.cycle]

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        if not self._shut:
            self._body += len(body)
            self._fed = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if not self._shut:
            self._phase = Phase.DONE
            self._fed = 0
            super().on_message_complete()
            if self.cycle.response_complete:
                self._wait()

    def on_response_complete(self) -> None:
        """The answer is whole."""
        super().on_response_complete()
        self._since = self._lobby.now()
        if self._phase is Phase.DONE and not self.pipeline and self.cycle.response_complete:
            self._wait()

    def pause_writing(self) -> None:
        """The client reads more slowly than is written."""
        self._unread_since = self._lobby.now()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._unread_since = 0.0
        super().resume_writing()

    def overdue(self, now: float) -> None:
        """Cut the connection off if its client has taken too long; to be called every second or so."""
        limits, took = self._lobby.limits, now - self._looked
        self._looked = now
        if self.transport.is_closing():
            self._unread_since = self._unread_since or now
        if self._unread_since and now - self._unread_since > limits.send_timeout:
            self._lobby.cut["unread"] += 1
            self._shut = True
            self.transport.abort()
        elif self.flow.read_paused and _has_left(self.transport):
            self._lobby.cut["left"] += 1
            self.transport.abort()
        elif not self._shut:
            self._look_at_input(now, took)

    def _look_at_input(self, now: float, took: float) -> None:
        limits = self._lobby.limits
        waited = now - self._since
        answered = self.cycle is None or self.cycle.response_complete
        if self._phase is Phase.WAITING and waited > (
            limits.keep_alive if self.cycle else limits.header_timeout
        ):
            self.refuse("idle", 408, "timeout", "no request came")
        elif self._phase is Phase.HEAD and answered and waited > limits.header_timeout:
            self.refuse(
                "header", 408, "timeout", f"the request's head took more than {limits.header_timeout:g} s"
            )
        elif self._phase is Phase.BODY:
            if self.flow.read_paused:
                self._since += took
            elif answered and waited > LINGER:
                self.refuse("body", 408, "timeout", "the rest of the body did not come")
            elif waited > limits.body_timeout or self._body < (waited - BODY_GRACE) * SLOWEST_BODY:
                why = f"the body took more than {limits.body_timeout:g} s, or came at less than {SLOWEST_BODY} bytes per second"
                self.refuse("body", 408, "timeout", why)

    def refuse(self, reason: str, status: int, code: str, why: str, *, retry: int | None = None) -> None:
        """Say why, unless another answer is on its way, and close."""
        if self._shut:
            return
        self._shut = True
        self._lobby.cut[reason] += 1
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (not cycle.response_started and not self.pipeline):
            self.transport.write(
                answer(status, code, why, retry=retry, headers=self.server_state.default_headers)
            )
        self._tell_requests()
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read."""
        self.refuse("invalid", 400, "bad_request", msg)

    def _measured(self, size: int) -> bool:
        """Count a part of the head; False if there is too much of it."""
        self._head += size
        if self._head > self._lobby.limits.headers or self._fields > MAX_FIELDS:
            self._refuse_head()
        return not self._shut

    def _refuse_head(self) -> None:
        most = self._lobby.limits.headers
        why = f"the request's head has more than {most} bytes ([gateway] max_headers) or {MAX_FIELDS} fields"
        self.refuse("head", 431, "request_header_fields_too_large", why)

    def _wait(self) -> None:
        """Wait for the next request."""
        self._phase, self._since = Phase.WAITING, self._lobby.now()
        self._lobby.idle[self] = None

    def _leave_lobby(self) -> None:
        self._lobby.strangers.pop(self, None)
        self._lobby.idle.pop(self, None)


def answer(
    status: int,
    code: str,
    message: str,
    *,
    retry: int | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> bytes:
    """A whole response with the error object, after which the connection is closed."""
    kind = "service_unavailable_error" if status == 503 else "invalid_request_error"
    body = msgspec.json.encode(ErrorBody(ErrorObject(message, kind, None, code)))
    lines = [*(headers or []), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if retry is not None:
        lines.append((b"retry-after", b"%d" % retry))
    lines.append((b"connection", b"close"))
    return STATUS_LINE[status] + b"".join(b"%s: %s\r\n" % line for line in lines) + b"\r\n" + body


def _has_left(transport: Any) -> bool:
    """Whether the client has closed its side: while reading is paused, nothing else tells."""
    peer = transport.get_extra_info("socket")
    if peer is None or peer.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(peer.fileno(), getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def _bound_unsent(transport: Any) -> None:
    """Keep what a client does not read here rather than in the system's buffers, which grow to megabytes per connection."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    peer = transport.get_extra_info("socket")
    if option is not None and peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
        peer.setsockopt(socket.IPPROTO_TCP, option, UNSENT)
