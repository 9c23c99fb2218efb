"""The processes of a node as its root sees them, and how it finds those that live no more though they have not ended.

A process that is stopped is found by its state, one whose loop hangs by pings that its own loop answers, with a progress counter per actor; an actor that is stuck in one
message is seen by those. Who only did not get the processors is given more time. What ends by itself, or loses its connection, the root hears of otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sgl_actors.actors.microkernel.actor import Context
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.control import KERNEL, Ping, Pong, Pulse, StopActor
from sgl_actors.actors.microkernel.process import Launched
from sgl_actors.errors import DeadlineExceeded, SglActorsError

HEARTBEAT = 1.0
"""Seconds between two pings of a process."""
STARTING_HEARTBEAT = 0.2
"""The same while an actor of it starts: how far it has come is shown to people."""
HUNG = 3.0
"""Seconds without an answer after which a process is killed whose loop waits for something but the disk, or has had time enough to answer."""
BUSY = 1.0
"""Seconds of processor time that are enough to answer."""
STARVED = 15.0
"""Seconds without an answer after which a process is killed though it got less than that."""
LOOK = 0.9
"""Seconds between two looks at whether processes are stopped."""
STALLED = 20.0
"""Seconds an actor may spend in one message while others wait for it."""


class Hosted:
    """A process as the root sees it: one it started, or a client that joined (`process` is None). `importing` counts classes that it is loading for a swap."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.process: Launched | None = None
        self.pid = 0
        self.hello = False
        self.ending = False
        self.stopped = False
        self.importing = 0
        self.actors: dict[str, Address] = {}
        self.starting: dict[str, asyncio.TimerHandle] = {}
        self.pulses: dict[str, Pulse] = {}
        self.counters: dict[str, float] = {}

    @property
    def kernel(self) -> Address:
        """Address of its kernel."""
        return Address(KERNEL, 0, self.endpoint)


class Vigil:
    """Watches over `hosts`, by endpoint; kills the processes that have to be, and the root hears of their end."""

    def __init__(self, context: Context, hosts: Mapping[str, Hosted]) -> None:
        self._ctx, self._hosts = context, hosts

    async def pulse(self, host: Hosted) -> None:
        """Ping one process until it ends; kill it when it does not answer."""
        while host.endpoint in self._hosts:
            try:
                pong = await self._ping(host)
            except SglActorsError as error:
                if isinstance(error, DeadlineExceeded) and (host.starting or host.importing):
                    continue
                if host.process is not None and host.endpoint in self._hosts:
                    self._ctx.log.warning(
                        "process does not answer, killed", process=host.name, why=error.code
                    )
                    host.process.kill()
                return
            host.counters = pong.counters
            host.pulses = {pulse.name: pulse for pulse in pong.pulses}
            for pulse in pong.pulses:
                if pulse.busy > STALLED and pulse.mailbox and pulse.name in host.actors:
                    self._ctx.log.error("actor is stuck in one message, stopped", stuck=pulse.name)
                    address = host.actors[pulse.name]
                    stop = StopActor(address.name, address.epoch, "stuck")
                    self._ctx.cast(host.kernel, stop, control=True)
                    if (
                        pulse.busy > 2 * STALLED and host.process is not None
                    ):  # it does not let itself be cancelled
                        host.process.kill()
            await asyncio.sleep(STARTING_HEARTBEAT if host.starting else HEARTBEAT)

    async def _ping(self, host: Hosted) -> Pong:
        """The answer to a ping; `DeadlineExceeded` once it is due. Who did not get the processor is asked again."""
        assert host.process is not None
        asked, used = self._ctx.now(), host.process.sign().cpu
        while True:
            try:
                return await self._ctx.call(host.kernel, Ping(), Pong, timeout=HUNG, control=True)
            except DeadlineExceeded:
                sign = host.process.sign()
                starved = sign.state in ("R", "D") and sign.cpu - used < BUSY
                if not starved or self._ctx.now() - asked > STARVED:
                    raise

    async def look(self) -> None:
        """Kill processes that have been stopped for two looks: nobody but an operator's signal does that, and what they hold is waited for."""
        while True:
            await asyncio.sleep(LOOK)
            for host in list(self._hosts.values()):
                if host.process is None:
                    continue
                stopped = host.process.sign().state == "T"
                if stopped and host.stopped:
                    self._ctx.log.warning("process is stopped, killed", process=host.name)
                    host.process.kill()
                host.stopped = stopped
