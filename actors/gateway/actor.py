"""The gateway: HTTP in front of a node.

Owns the listening socket and the open HTTP connections, nothing else: every answer is made of what the node streams.
Messages in: `Describe`. Messages out: those of `NodeClient` (generate, tokenize, …) to the tokenizer and the
scheduler, `Cancel` to the tokenizer, `ListActors` to the root.

When it crashes, open connections break and the requests behind them are aborted with their streams; the next
incarnation binds the same port again and clients retry. While another actor restarts, running requests wait for it.
"""

from __future__ import annotations

import socket
import time

import msgspec

from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.messages import Describe, Listening, Options
from sgl_actors.actors.gateway.server import Server, bind
from sgl_actors.actors.gateway.service import Service
from sgl_actors.actors.gateway.tenants import Tenants
from sgl_actors.actors.gateway.upstream import NodeUpstream
from sgl_actors.actors.microkernel import Actor, Context, Message, Request


class GatewayActor(Actor):
    """Serves HTTP from its event loop."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.options = msgspec.convert(context.config.get("gateway", {}), Options)
        node = context.config.get("node", {})
        self.service = Service(
            NodeUpstream(context),
            self.options,
            log=self.log,
            now=context.now,
            clock=time.time,
            tenants=Tenants(context.config.get("tenants")),
            name=str(node.get("name", "node")),
        )
        self._socket: socket.socket | None = None
        self._server: Server | None = None

    async def start(self) -> None:
        """Bind and serve; `ConfigError` when the port is in use."""
        self._socket = bind(self.options.host, self.options.port)
        self._server = Server(build_app(self.service), self.log)
        await self._server.open(self._socket)
        self.ctx.task(self._server.main_loop(), name="gateway tick")
        self.log.info("listening", url=self.listening().url)

    def listening(self) -> Listening:
        """Where it answers."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return Listening(host, port, f"http://{shown}:{port}")

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
        return {
            "http_connections": float(len(self._server.server_state.connections)),
            "http_requests": float(len(self._server.server_state.tasks)),
            "http_port": float(self._socket.getsockname()[1]),
        }
