"""The gateway: HTTP in front of a node.

Owns the listening socket and the open HTTP connections, nothing else: every answer is made of what the node streams.
Messages in: `Describe`. Messages out: those of `NodeClient` (generate, tokenize, …) to the tokenizer and the
scheduler, `Cancel` to the tokenizer, `ListActors` to the root.

When it crashes, open connections break. A request behind one goes on for a while if its client gave it a key (`retry`), and is aborted otherwise; the next
incarnation binds the same port again, and who sends the request once more with the same key gets the rest. While another actor restarts, running requests
wait for it.
When another class takes its place (`handover`), socket and connections go on.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import msgspec

from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.connection import Limits
from sgl_actors.actors.gateway.handover import LAYOUT, GatewayState
from sgl_actors.actors.gateway.messages import Describe, Listening, Options
from sgl_actors.actors.gateway.server import Server, bind
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.tenants import Tenants
from sgl_actors.actors.gateway.upstream import NodeUpstream, Upstream
from sgl_actors.actors.microkernel import Actor, Context, Message, Request, Snapshot
from sgl_actors.errors import ConfigError, SwapFailed


class GatewayActor(Actor):
    """Serves HTTP from its event loop."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = msgspec.convert(context.config.get("gateway", {}), Options)
        node = context.config.get("node", {})
        self.service = Service(
            self.connect(context),
            self.options,
            log=self.log,
            now=context.now,
            clock=time.time,
            tenants=Tenants(context.config.get("tenants")),
            name=str(node.get("name", "node")),
        )
        self._app = build_app(self.service)
        self._socket: socket.socket | None = None
        self._server: Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    def connect(self, context: Context) -> Upstream:
        """What is asked: the node."""
        return NodeUpstream(context)

    async def start(self) -> None:
        """Bind and serve; `ConfigError` when the port is in use, or TLS cannot be had."""
        options = self.options
        tls = tls_files(options)
        self._socket = bind(options.host, options.port)
        server = Server(self._app, self.log, limits=limits_of(options), now=self.ctx.now, tls=tls)
        await server.open(self._socket)
        self._server = server
        self._tick()
        self.log.info("listening", url=self.listening().url)

    def _tick(self) -> None:
        assert self._server is not None
        self._ticking = self.ctx.task(self._server.main_loop(), name="gateway tick")

    def snapshot(self) -> Snapshot:
        """Socket, connections and books; see `handover`."""
        options = self.options
        state = GatewayState(options.host, options.port, options.tls)
        return Snapshot.of(LAYOUT, state, socket=self._socket, server=self._server, service=self.service)

    async def restore(self, snapshot: Snapshot) -> None:
        """Take over where another gateway listens; `SwapFailed` for another address, which takes a restart."""
        options, state = self.options, snapshot.read(LAYOUT, GatewayState)
        if (options.host, options.port, options.tls) != (state.host, state.port, state.tls):
            raise SwapFailed("[gateway] host, port and TLS change with a restart only")
        listener, server = snapshot.handle("socket", socket.socket), snapshot.handle("server", Server)
        before = snapshot.handle("service", Service)
        self._socket, self._server = listener, server
        self.service.follow(before)
        server.take_over(self._app, self.log, limits_of(options))
        self._tick()

    def resume(self) -> None:
        """Whatever a successor has put in place of what is here, goes back."""
        if self._server is not None:
            self._server.take_over(self._app, self.log, limits_of(self.options))
            self.service.apply_options()

    async def leave(self) -> None:
        """The successor looks after the connections."""
        if self._ticking is not None:
            self._ticking.cancel()

    def listening(self) -> Listening:
        """Where it answers."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if self.options.tls else "http"
        return Listening(host, port, f"{scheme}://{shown}:{port}")

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Answer `Describe`."""
        if isinstance(message, Describe):
            return self.listening()
        return await super().receive(message, request)

    async def stop(self) -> None:
        """Stop listening and let requests in work end, for a short while."""
        self.service.end_watching()
        if self._server is not None and self._socket is not None:
            await self._server.close(self._socket)
        elif self._socket is not None:
            self._socket.close()

    def statistics(self) -> dict[str, float]:
        """Open connections and requests in work, and the port."""
        if self._server is None or self._socket is None or self._socket.fileno() < 0:
            return {}
        gate = self.service.gate
        return {
            "http_connections": float(len(self._server.server_state.connections)),
            "http_requests": float(len(self._server.server_state.tasks)),
            "http_port": float(self._socket.getsockname()[1]),
            "http_held_bytes": float(gate.held),
            "http_refused_total": float(gate.refused),
            "http_cut_total": float(self._server.lobby.cut.total()),
        }


def limits_of(options: Options) -> Limits:
    """The bounds of each connection."""
    return Limits(
        connections=options.max_connections,
        headers=options.max_headers,
        header_timeout=options.header_timeout,
        body_timeout=options.body_timeout,
        send_timeout=options.send_timeout,
    )


def tls_files(options: Options) -> tuple[str, str] | None:
    """Certificate and key, None for none.

    Raises:
        ConfigError: one without the other, or a key that others may read.
    """
    if not options.tls_cert and not options.tls_key:
        return None
    if not options.tls_cert or not options.tls_key:
        missing = "gateway.tls_cert" if not options.tls_cert else "gateway.tls_key"
        raise ConfigError(f"{missing}: a certificate and its key belong together", param=missing)
    try:
        mode = Path(options.tls_key).stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"gateway.tls_key: {error.strerror}: {options.tls_key}", param="gateway.tls_key"
        ) from None
    if mode & 0o077:
        why = f"others may read {options.tls_key} (mode {mode & 0o777:04o}); chmod 600 it"
        raise ConfigError(f"gateway.tls_key: {why}", param="gateway.tls_key")
    return options.tls_cert, options.tls_key
