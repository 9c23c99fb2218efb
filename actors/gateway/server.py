"""uvicorn inside an actor's event loop: our socket, our loop, no signal handlers, its log lines in ours."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys

import structlog
import uvicorn
from starlette.types import ASGIApp

from sgl_actors.errors import ConfigError

BACKLOG = 1024
KEEP_ALIVE = 75
"""Seconds an idle connection is kept; longer than clients' pools keep theirs, so that they close first."""
GRACE = 3
"""Seconds that requests in work get when the gateway stops."""
FAREWELL = 1.0
"""Seconds to tell those that are left."""
TICK = 1.0
"""Seconds between two updates of the Date header."""


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


class Server(uvicorn.Server):
    """A uvicorn server in three pieces: `open`, `main_loop` as a task, `close`.

    `serve` is not used: it would take over the process's signals, which are the root's business.
    """

    def __init__(self, app: ASGIApp, log: structlog.stdlib.BoundLogger, *, grace: int = GRACE) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=grace,
            )
        )
        self._adopt_logger(log)

    async def open(self, listener: socket.socket) -> None:
        """Take connections from here on."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=[listener])

    async def main_loop(self) -> None:
        """Keep the Date header right."""
        while True:
            await self.on_tick(0)
            await asyncio.sleep(TICK)

    async def close(self, listener: socket.socket) -> None:
        """Stop listening; requests in work get the grace time, then they are answered 503."""
        self.should_exit = True
        await self.shutdown(sockets=[listener])
        if remaining := list(self.server_state.tasks):
            await asyncio.wait(remaining, timeout=FAREWELL)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @staticmethod
    def _adopt_logger(log: structlog.stdlib.BoundLogger) -> None:
        logger = logging.getLogger("uvicorn.error")
        logger.handlers = [_ToStructlog(log)]
        logger.propagate = False
        logger.setLevel(logging.WARNING)


class _ToStructlog(logging.Handler):
    """Passes uvicorn's warnings and errors on."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        say("http server", detail=record.getMessage(), exc_info=record.exc_info)
