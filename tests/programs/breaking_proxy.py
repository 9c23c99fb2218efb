"""A TCP proxy that breaks connections when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class BreakingProxy:
    """Passes bytes on to `port`; of each connection's answer as many as `allow` says, None for all, and then breaks it off.

    Attributes:
        port: where it listens.
        broken: connections that were broken.
    """

    def __init__(self, port: int, allow: Callable[[], int | None]) -> None:
        self.port = 0
        self.broken = 0
        self._to, self._allow = port, allow
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._allow()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        asking = asyncio.ensure_future(self._pass(reader, far_writer, None))
        try:
            await self._pass(far_reader, writer, left)
        finally:
            asking.cancel()
            await asyncio.wait([asking])
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None
    ) -> None:
        while data := await reader.read(4096 if left is None else min(4096, left) or 1):
            writer.write(data)
            await writer.drain()
            left = None if left is None else left - len(data)
            if left is not None and left <= 0:
                self.broken += 1
                return
