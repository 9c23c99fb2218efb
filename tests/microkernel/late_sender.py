"""A process that casts numbers to an actor until it is killed: `python late_sender.py ENDPOINT OWN_ENDPOINT EPOCH`."""

from __future__ import annotations

import asyncio
import itertools
import sys

from sgl_actors.actors.microkernel import Actor, Address, Message, Request
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from sgl_actors.errors import Overloaded
from tests.microkernel.kernel_actors import Say


class Ticker(Actor):
    """Counts up."""

    async def start(self) -> None:
        self.ctx.task(self._tick())

    async def receive(self, message: Message, request: Request) -> None:
        """Nobody says anything to it."""

    async def _tick(self) -> None:
        for number in itertools.count():
            try:
                self.ctx.cast(Address("echo", 0, sys.argv[1]), Say(f"{sys.argv[3]}:{number}"))
            except Overloaded:
                await asyncio.sleep(0.01)
            if number % 20 == 0:
                await asyncio.sleep(0.001)


async def main() -> None:
    """Live until killed."""
    system = System("sender", ZmqTransport(sys.argv[2]))
    await system.open()
    system.spawn(Ticker, "ticker", epoch=int(sys.argv[3]))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
