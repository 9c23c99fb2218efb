"""A network and processes that exist only on a `SimulatedLoop`: messages take a seeded time, connections break, processes hang and die.

As ZMQ does: FIFO per pair of endpoints; at most once; a message to a peer that does not take it waits in a bounded queue. A connection needs both
directions: `TIMEOUT` s after one of them is cut, it breaks (heartbeats), watchers hear `lost`, of what was under way a leading part is lost and the rest comes
after the connection is made anew. When a process dies, what it had sent last may be lost, and its connections break at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sgl_actors.actors.microkernel.control import KERNEL, Hello, Table
from sgl_actors.actors.microkernel.kernel import KernelActor
from sgl_actors.actors.microkernel.process import KERNEL_CRASHED, Boot, Sign
from sgl_actors.actors.microkernel.simulated_loop import Host, SimulatedLoop
from sgl_actors.actors.microkernel.system import LoggerFactory, System
from sgl_actors.actors.microkernel.transport import Deliver, Lost
from sgl_actors.errors import Overloaded

TIMEOUT = 3.0
"""Seconds after which a connection without heartbeats breaks."""
RECONNECT = 1.0
"""Seconds at most until a connection is made anew, once it can be."""
NOTICE = 0.05
"""Seconds at most until the end of a process shows at its peers."""


@dataclass(frozen=True)
class Weather:
    """How messages travel.

    Attributes:
        delay: mean seconds of a message.
        spike: share of messages that take up to `longest` seconds instead.
        longest: see there.
        capacity: messages that wait for one peer at most; as many again for replies and control.
    """

    delay: float = 0.0005
    spike: float = 0.0
    longest: float = 1.0
    capacity: int = 8192


class _Link:
    """What one endpoint sends to another: a connection of its own."""

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = source, target
        self.queue: deque[tuple[bytes, bytes]] = deque()
        self.last = 0.0
        self.broken = False
        self.generation = 0
        self.watched = False

    def __repr__(self) -> str:
        return f"<_Link {self.source} to {self.target}: {len(self.queue)}{' broken' if self.broken else ''}>"


class SimulatedNetwork:
    """All endpoints of a simulation and what is between them.

    Attributes:
        weather: how messages travel from now on.
        delivered, lost_messages: counts.
    """

    def __init__(self, loop: SimulatedLoop, weather: Weather | None = None) -> None:
        self.loop = loop
        self.weather = weather or Weather()
        self.delivered = self.lost_messages = 0
        self._members: dict[str, SimulatedTransport] = {}
        self._links: dict[tuple[str, str], _Link] = {}
        self._cut: dict[tuple[str, str], None] = {}

    def transport(self, endpoint: str, host: Host) -> SimulatedTransport:
        """An endpoint in that process."""
        return SimulatedTransport(self, endpoint, host)

    # -- faults -------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from one to the other any more, nor, once the connection has broken, back."""
        if (source, target) not in self._cut:
            self._cut[source, target] = None
            self.loop.call_later(TIMEOUT, self._break_if_cut, source, target, context=self.loop.world.context)

    def heal(self, source: str, target: str) -> None:
        """Undo `cut`. What waits goes on, after a while where the connection had broken."""
        self._cut.pop((source, target), None)
        if (target, source) in self._cut:
            return
        for link in self._between(source, target):
            link.last = self.loop.time()
            if link.broken:
                link.broken = False
                link.last += RECONNECT * self.loop.random.random()
            self._schedule_all(link)

    def freeze(self, endpoint: str) -> None:
        """The process there is stopped, and with it the thread that answers heartbeats."""
        for other in list(self._members):
            if other != endpoint:
                self.cut(endpoint, other)

    def thaw(self, endpoint: str) -> None:
        """Undo `freeze`."""
        for source, target in [pair for pair in self._cut if pair[0] == endpoint]:
            self.heal(source, target)

    def break_(self, source: str, target: str) -> None:
        """Break both connections between two endpoints; they are made anew at once unless they are cut."""
        for link in self._between(source, target):
            self._break(link)
        if (source, target) not in self._cut:
            self.heal(source, target)

    def _between(self, one: str, other: str) -> list[_Link]:
        pairs = ((one, other), (other, one))
        return [self._links[pair] for pair in pairs if pair in self._links]

    def _break_if_cut(self, source: str, target: str) -> None:
        if (source, target) in self._cut:
            for link in self._between(source, target):
                self._break(link)

    def _break(self, link: _Link) -> None:
        if link.broken:
            return
        link.broken = True
        link.generation += 1
        self._lose(link, int(self.loop.random.random() * (len(link.queue) + 1)), first=True)
        self._tell_lost(link)

    def _lose(self, link: _Link, count: int, *, first: bool) -> None:
        for _ in range(count):
            (link.queue.popleft if first else link.queue.pop)()
        self.lost_messages += count

    def _tell_lost(self, link: _Link) -> None:
        member = self._members.get(link.source)
        if link.watched and member is not None:
            member.tell_lost(link.target)

    # -- endpoints come and go ----------------------------------------------------------------------------

    def join(self, member: SimulatedTransport) -> None:
        """It receives from now on; what was sent to it before waits for it."""
        self._members[member.endpoint] = member
        for link in self._links.values():
            if link.target == member.endpoint:
                self._schedule_all(link)

    def leave(self, endpoint: str, *, orderly: bool) -> None:
        """It is gone. In an orderly way, what it has sent arrives."""
        if self._members.pop(endpoint, None) is None:
            return
        for link in list(self._links.values()):
            if link.source == endpoint and not orderly:
                self._lose(link, int(self.loop.random.random() * (len(link.queue) + 1)), first=False)
            elif link.target == endpoint:
                link.broken = True
                link.generation += 1
                self._lose(link, len(link.queue), first=True)
                delay = NOTICE * self.loop.random.random()
                self.loop.call_later(delay, self._tell_lost, link, context=self.loop.world.context)

    # -- messages -----------------------------------------------------------------------------------------

    def link(self, source: str, target: str) -> _Link:
        """The connection from one to the other."""
        found = self._links.get((source, target))
        if found is None:
            found = self._links[source, target] = _Link(source, target)
        return found

    def send(self, source: str, target: str, frames: tuple[bytes, bytes], *, reserved: bool) -> None:
        """Queue one message."""
        link, capacity = self.link(source, target), self.weather.capacity
        if len(link.queue) >= capacity * (2 if reserved else 1):
            raise Overloaded(f"queue to {target} is full ({capacity} messages)")
        link.queue.append(frames)
        if target in self._members and not link.broken:
            self._schedule(link)

    def _schedule_all(self, link: _Link) -> None:
        if link.target not in self._members:
            return
        for _ in link.queue:
            self._schedule(link)

    def _schedule(self, link: _Link) -> None:
        weather, draw = self.weather, self.loop.random
        if draw.random() < weather.spike:
            delay = draw.random() * weather.longest
        else:
            delay = draw.expovariate(1 / weather.delay)
        link.last = max(self.loop.time() + delay, link.last)
        member = self._members[link.target]
        self.loop.call_at(link.last, self._arrive, link, link.generation, context=member.host.context)

    def _arrive(self, link: _Link, generation: int) -> None:
        """Hand over the first message that waits, so that they keep their order whichever timer is first."""
        member = self._members.get(link.target)
        cut = (link.source, link.target) in self._cut
        if member is None or cut or not link.queue or generation != link.generation:
            return
        frames = link.queue.popleft()
        self.delivered += 1
        member.receive(frames)

    def drop(self, source: str, target: str) -> None:
        """The sender forgets what it has queued; some of it may be under way."""
        link = self._links.get((source, target))
        if link is not None:
            link.watched = False
            self._lose(link, int(self.loop.random.random() * (len(link.queue) + 1)), first=False)


class SimulatedTransport:
    """See `Transport`: one endpoint of a `SimulatedNetwork`, in the process `host`.

    Attributes:
        fuse: messages until the process dies in the middle of what it is doing; negative for never.
        on_fuse: what kills it then.
    """

    def __init__(self, network: SimulatedNetwork, endpoint: str, host: Host) -> None:
        self.endpoint = endpoint
        self.host = host
        self.fuse = -1
        self.on_fuse: Callable[[], None] = lambda: None
        self._network = network
        self._deliver: Deliver | None = None
        self._lost: Lost | None = None

    def open(self, deliver: Deliver, lost: Lost) -> None:
        """See `Transport.open`."""
        self._deliver, self._lost = deliver, lost
        self._network.join(self)

    def send(self, endpoint: str, envelope: bytes, payload: bytes, *, reserved: bool) -> None:
        """See `Transport.send`."""
        if self.host.dead:
            return
        if self.fuse == 0:
            self.on_fuse()
            return
        self.fuse -= 1
        self._network.send(self.endpoint, endpoint, (envelope, payload), reserved=reserved)

    def receive(self, frames: tuple[bytes, bytes]) -> None:
        """A message has arrived."""
        if self._deliver is not None:
            self._deliver([*frames])

    def tell_lost(self, endpoint: str) -> None:
        """A watched connection has broken."""
        if self._lost is not None:
            self.host.call(self._lost, endpoint)

    def watch(self, endpoint: str) -> None:
        """See `Transport.watch`."""
        self._network.link(self.endpoint, endpoint).watched = True

    def drop(self, endpoint: str) -> None:
        """See `Transport.drop`."""
        self._network.drop(self.endpoint, endpoint)

    def close(self) -> None:
        """See `Transport.close`."""
        self._network.leave(self.endpoint, orderly=True)


class SimulatedProcess:
    """What `Root` launches instead of an operating system's process (see `process.Launched`).

    Attributes:
        system: its kernel.
        host: what of the loop is its own.
        transport: its endpoint.
    """

    pids = itertools.count(100)

    def __init__(
        self, network: SimulatedNetwork, boot: Boot, on_exit: Callable[[int], None], logger: LoggerFactory
    ) -> None:
        loop = network.loop
        self.name, self.endpoint = boot.process, boot.endpoint
        self.pid = next(self.pids)
        self.ended = asyncio.Event()
        self.stopped = self._starved = False
        self.host = loop.host(boot.process)
        self.transport = network.transport(boot.endpoint, self.host)
        self.transport.on_fuse = self.kill
        self.system = System(
            boot.process,
            self.transport,
            config=boot.config,
            logger=logger,
            force_codec=boot.force_codec,
            clock=loop.time,
        )
        self._network, self._boot = network, boot
        self._parent = loop.current()
        self._on_exit = on_exit
        self._begun = loop.time()
        begins = loop.random.random() * STARTS
        loop.call_later(begins, lambda: self.host.task(self._live()), context=self.host.context)

    def __repr__(self) -> str:
        return f"<SimulatedProcess {self.name} pid={self.pid} {self.host}>"

    async def _live(self) -> None:
        """As `process.live`."""
        terminated = asyncio.Event()
        system, boot = self.system, self._boot
        await system.open()
        kernel = system.spawn(
            KernelActor,
            KERNEL,
            {"system": system, "root": boot.root, "terminated": terminated},
            on_exit=lambda *_: None if terminated.is_set() else self._end(KERNEL_CRASHED),
        )
        await kernel.ready.wait()
        hello = Hello(boot.process, boot.endpoint, self.pid)
        try:
            table = await kernel.context.call(boot.root, hello, Table, timeout=10.0, control=True)
        except Exception:  # noqa: BLE001 - as an exception ends a process
            self._end(1)
            return
        for address in table.names:
            system.name_up(address)
        await terminated.wait()
        await system.close()
        self._end(0)

    def _end(self, code: int) -> None:
        if self.host.dead:
            return
        self.host.kill()
        self._network.leave(self.endpoint, orderly=code == 0)
        loop = self._network.loop
        loop.call_later(NOTICE * loop.random.random(), self._ended, code, context=self._parent.context)

    def _ended(self, code: int) -> None:
        self.ended.set()
        self._on_exit(code)

    def kill(self) -> None:
        """As by SIGKILL: in the middle of whatever it does, without any `stop`."""
        self._end(-9)

    def hang(self, seconds: float) -> None:
        """Its loop is blocked that long; what is sent to it waits."""
        self._hold(seconds, stopped=False)

    def stop(self, seconds: float) -> None:
        """As by SIGSTOP, and SIGCONT that much later."""
        self._hold(seconds, stopped=True)

    def starve(self, seconds: float) -> None:
        """Others have the processors that long."""
        self._hold(seconds, stopped=False, starved=True)

    def _hold(self, seconds: float, *, stopped: bool, starved: bool = False) -> None:
        self.stopped, self._starved = stopped, starved
        if stopped:
            self._network.freeze(self.endpoint)
        self.host.hold()
        loop = self._network.loop
        loop.call_later(seconds, self._wake, context=loop.world.context)

    def _wake(self) -> None:
        if self.stopped:
            self._network.thaw(self.endpoint)
        self.stopped = False
        self.host.wake()

    def sign(self) -> Sign:
        """See `Launched.sign`: a blocked loop uses the processor, a stopped or starved one does not."""
        if self.host.dead:
            return Sign()
        state = "T" if self.stopped else "R" if self.host.held else "S"
        idle = self.stopped or self._starved
        return Sign(state, 0.0 if idle else self._network.loop.time() - self._begun)


STARTS = 0.3
"""Seconds at most until a process that was launched runs."""
