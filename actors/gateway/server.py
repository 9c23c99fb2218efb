"""uvicorn inside an actor's event loop: our socket, our loop, no signal handlers, its log lines in ours."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import socket
import sys
import time
from collections.abc import Callable

import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from sgl_actors.actors.gateway.connection import Connection, Limits, Lobby
from sgl_actors.errors import ConfigError

BACKLOG = 1024
GRACE = 3
"""Seconds that requests in work get when the gateway stops."""
FAREWELL = 1.0
"""Seconds to tell those that are left."""
TICK = 1.0
"""Seconds between two updates of the Date header, and two looks at who takes too long."""
HANDSHAKE = 10.0
"""Seconds for a TLS handshake."""
SPARE_FILES = 256
"""Open files that are not for connections."""


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket.

    Raises:
        ConfigError: the port is in use, not allowed, or the host is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(
            f"gateway.host: {host!r} is no address: {error.strerror}", param="gateway.host"
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_error(host, port, error) from None
    listener.setblocking(False)
    return listener


def _bind_error(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} is in use on {host}; stop what uses it, or set [gateway] port to another",
            param="gateway.port",
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} is not allowed to this user: {error.strerror}", param="gateway.port")
    return ConfigError(f"gateway.host: cannot bind {host}:{port}: {error.strerror}", param="gateway.host")


def allow_connections(wanted: int) -> int:
    """How many connections may be open: `wanted`, if this process may have as many files; its limit is raised as far as that goes."""
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(wanted, soft - SPARE_FILES))
    return wanted


class Front:
    """The application in force. Another one can take its place: requests that have begun end on the one they began on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await self.app(scope, receive, send)


class Server(uvicorn.Server):
    """A uvicorn server in three pieces: `open`, `main_loop` as a task, `close`.

    `serve` is not used: it would take over the process's signals, which are the root's business.

    Attributes:
        front: the application, which can be changed while it serves.
        lobby: the connections and their limits, which can be changed, too.
    """

    def __init__(
        self,
        app: ASGIApp,
        log: structlog.stdlib.BoundLogger,
        *,
        grace: int = GRACE,
        limits: Limits | None = None,
        now: Callable[[], float] | None = None,
        tls: tuple[str, str] | None = None,
    ) -> None:
        """Serve `app`; `tls` names the files of a certificate and its key, in PEM."""
        self.front = Front(app)
        self.lobby = Lobby(limits or Limits(), now or time.monotonic)
        cert, key = tls or (None, None)
        super().__init__(
            uvicorn.Config(
                self.front,
                loop="none",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(self.lobby.limits.keep_alive),
                timeout_graceful_shutdown=grace,
                ssl_certfile=cert,
                ssl_keyfile=key,
            )
        )
        self.adopt_logger(log)

    async def open(self, listener: socket.socket) -> None:
        """Take connections from here on; `ConfigError` if the certificate cannot be used."""
        try:
            self.config.load()
        except OSError as error:
            raise ConfigError(f"gateway.tls_cert: {error}", param="gateway.tls_cert") from None
        self.lifespan = self.config.lifespan_class(self.config)
        limits = self.lobby.limits
        self.lobby.limits = dataclasses.replace(limits, connections=allow_connections(limits.connections))
        self.servers = [
            await asyncio.get_running_loop().create_server(
                self._connect,
                sock=listener,
                ssl=self.config.ssl,
                backlog=BACKLOG,
                ssl_handshake_timeout=HANDSHAKE if self.config.ssl else None,
            )
        ]
        self.started = True

    def _connect(self) -> Connection:
        return Connection(
            lobby=self.lobby,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def take_over(self, app: ASGIApp, log: structlog.stdlib.BoundLogger, limits: Limits) -> None:
        """Have `app` answer requests that begin from now on, also on connections that are open, within `limits`."""
        self.front.app = app
        self.lobby.limits = dataclasses.replace(limits, connections=allow_connections(limits.connections))
        self.adopt_logger(log)

    async def main_loop(self) -> None:
        """Keep the Date header right, and cut off who takes too long."""
        while True:
            await self.on_tick(0)
            self.sweep()
            await asyncio.sleep(TICK)

    def sweep(self) -> None:
        """Look at every connection once."""
        now = self.lobby.now()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.overdue(now)

    async def close(self, listener: socket.socket) -> None:
        """Stop listening; requests in work get the grace time, then they are answered 503."""
        self.should_exit = True
        await self.shutdown(sockets=[listener])
        if remaining := list(self.server_state.tasks):
            await asyncio.wait(remaining, timeout=FAREWELL)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @staticmethod
    def adopt_logger(log: structlog.stdlib.BoundLogger) -> None:
        """Have uvicorn's lines written there."""
        logger = logging.getLogger("uvicorn.error")
        logger.handlers = [_ToStructlog(log)]
        logger.propagate = False
        logger.setLevel(logging.WARNING)


class _ToStructlog(logging.Handler):
    """Passes uvicorn's errors on; its warnings are about what clients send, which anybody could fill the log with."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        say = self._log.error if record.levelno >= logging.ERROR else self._log.debug
        say("http server", detail=record.getMessage(), exc_info=record.exc_info)
