"""What must hold in every history, checked from outside of the code that is to keep it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from sgl_actors.actors.cache.actor import CacheActor
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.microkernel.cell import Cell
from sgl_actors.actors.microkernel.control import KERNEL, Hello
from sgl_actors.actors.microkernel.exchange import Incoming
from sgl_actors.actors.microkernel.mailbox import Mailbox
from sgl_actors.actors.microkernel.registry import Registry
from sgl_actors.actors.microkernel.simulated_loop import Host
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.wire import Envelope, Kind, Message
from sgl_actors.actors.programs.actor import ProgramsActor
from sgl_actors.actors.scheduler.messages import Progress, Submit
from sgl_actors.actors.tokenizer import vocabulary
from tests.simulation.simulated_node import World, byte_vocabulary


class Watch:
    """Looks on while messages are sent, routed and handled."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._last: dict[tuple[Address, Address, bool], int] = {}
        self._over: defaultdict[int, dict[str, int]] = defaultdict(dict)
        self._gone: defaultdict[int, set[str]] = defaultdict(set)
        self._suspect: Address | None = None
        self._submitted: Counter[tuple[Address, Address, str]] = Counter()
        self._ended: Counter[tuple[Address, Address, str]] = Counter()

    # What a system has been told of dead incarnations, kept beside its own registry.

    def told_down(self, system: System, address: Address) -> None:
        over = self._over[id(system)]
        over[address.name] = max(over.get(address.name, 0), address.epoch)

    def told_gone(self, system: System, endpoint: str) -> None:
        self._gone[id(system.registry)].add(endpoint)

    def told_back(self, registry: Registry, endpoint: str) -> None:
        self._gone[id(registry)].discard(endpoint)

    def is_over(self, system: System, address: Address) -> bool:
        if address.endpoint in self._gone[id(system.registry)]:
            return True
        return 0 < address.epoch <= self._over[id(system)].get(address.name, 0)

    def routing(self, system: System, envelope: Envelope) -> None:
        returns = envelope.tag == Hello.TAG  # a client that was cut off says that it is there
        self._suspect = envelope.frm if self.is_over(system, envelope.frm) and not returns else None

    def routed(self) -> None:
        self._suspect = None

    def put(self, item: Any) -> None:
        if self._suspect is not None and isinstance(item, Incoming):
            tag = item.message.TAG
            self.world.violated(f"{item.cell.address} took {tag} of {self._suspect}, which is over")

    # Messages as they are handled.

    def handling(self, cell: Cell, request: Incoming) -> None:
        envelope, world = request.envelope, self.world
        world.note(f"{cell.address} handles {type(request.message).__name__} of {envelope.frm}")
        if envelope.to.epoch not in (0, cell.address.epoch):
            world.violated(f"{cell.address} handles a message to {envelope.to}")
        if envelope.frm == cell.address or cell.address.name == KERNEL:
            return
        key = (envelope.frm, cell.address, envelope.control)
        if envelope.id <= self._last.get(key, -1):
            world.violated(
                f"{cell.address} handles {request.message.TAG} of {envelope.frm} out of order, or twice"
            )
        self._last[key] = envelope.id
        if isinstance(request.message, Progress):
            self._progress(cell, envelope.frm, request.message)

    def handled(self, cell: Cell, request: Incoming) -> None:
        actor = cell.actor
        if isinstance(request.message, Submit):
            for sequence in request.message.sequences:
                self._submitted[cell.address, envelope_owner(request), sequence.id] += 1
        if isinstance(actor, CacheActor):
            core = actor.core
            if core.free + core.cached + core.leased != core.total:
                self.world.violated(
                    f"pages: {core.free} free, {core.cached} cached, {core.leased} leased of {core.total}"
                )

    def _progress(self, cell: Cell, scheduler: Address, message: Progress) -> None:
        for update in message.updates:
            if update.finish is None:
                continue
            key = (scheduler, cell.address, update.id)
            self._ended[key] += 1
            if self._ended[key] > self._submitted[key]:
                self.world.violated(f"{scheduler} ended {update.id} {self._ended[key]} times")


def envelope_owner(request: Incoming) -> Address:
    """Who sent it."""
    return request.envelope.frm


@contextmanager
def watched(world: World) -> Iterator[Watch]:
    """Have the kernels of a simulation looked on, and the tokenizer use the byte vocabulary."""
    watch = Watch(world)
    handle, send, route = Cell._handle, System._send, System._route_request
    back = Registry.back
    put, name_down, peer_down, name_up = Mailbox.put, System.name_down, System.peer_down, System.name_up

    async def watched_handle(cell: Cell, request: Incoming) -> None:
        if request.cancelled:
            return
        watch.handling(cell, request)
        await handle(cell, request)
        watch.handled(cell, request)

    def numbered(system: System, envelope: Envelope, message: Message | None, **options: Any) -> None:
        if envelope.kind == Kind.CAST:
            envelope = msgspec.structs.replace(envelope, id=next(system._ids))
        send(system, envelope, message, **options)

    def watched_route(system: System, envelope: Envelope, message: Message) -> None:
        watch.routing(system, envelope)
        try:
            route(system, envelope, message)
        finally:
            watch.routed()

    def watched_put(mailbox: Mailbox[Any], item: Any, **options: Any) -> Any:
        watch.put(item)
        return put(mailbox, item, **options)

    def watched_down(system: System, address: Address, reason: str) -> None:
        watch.told_down(system, address)
        name_down(system, address, reason)

    def watched_up(system: System, address: Address) -> None:
        if address.epoch > 1:
            watch.told_down(system, msgspec.structs.replace(address, epoch=address.epoch - 1))
        name_up(system, address)

    def watched_gone(system: System, endpoint: str, *more: Any) -> None:
        watch.told_gone(system, endpoint)
        peer_down(system, endpoint, *more)

    def watched_back(registry: Registry, endpoint: str) -> None:
        watch.told_back(registry, endpoint)
        back(registry, endpoint)

    patches: list[tuple[Any, str, Callable[..., Any]]] = [
        (Cell, "_handle", watched_handle),
        (System, "_send", numbered),
        (System, "_route_request", watched_route),
        (Mailbox, "put", watched_put),
        (System, "name_down", watched_down),
        (System, "name_up", watched_up),
        (System, "peer_down", watched_gone),
        (Registry, "back", watched_back),
        (vocabulary, "load", lambda _path: byte_vocabulary()),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield watch
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def idle_problems(world: World) -> list[str]:
    """What is left of requests although nobody asks for anything any more."""
    problems = []
    if (scheduler := world.scheduler) is not None:
        core = scheduler.core
        if core.busy or core.waiting or core.batch.running or core.batch.in_flight:
            problems.append(f"scheduler: {core.busy} live, {len(core.batch.running)} running")
        if not core.links.ready:
            problems.append(f"scheduler: {core.links}")
        if len(core.requests.orphans):
            problems.append(f"scheduler: {len(core.requests.orphans)} orphans")
    if (cache := world.cache) is not None:
        core_of_cache = cache.core
        if core_of_cache.leased or core_of_cache.leases:
            problems.append(f"cache: {core_of_cache.leased} pages leased in {core_of_cache.leases} leases")
        problems += [f"cache: {problem}" for problem in core_of_cache.check(full=True)]
    if (tokenizer := world.tokenizer) is not None:
        waiting = len(tokenizer._preparations.waiting) + len(tokenizer._submissions.outbox.submissions)
        left = len(tokenizer._delivery.live) + waiting
        if left:
            problems.append(f"tokenizer: {left} requests")
    programs = world.actor("programs")
    if isinstance(programs, ProgramsActor) and programs._programs:
        problems.append(f"programs: {[*programs._programs]} are said to run")
    systems = [world.system, *(client.system for client in world.clients if not client.host.dead)]
    systems += [process.system for process in world.processes.values() if not process.host.dead]
    for system in systems:
        problems += _of_system(system)
    hosts = [world.host, *(process.host for process in world.processes.values())]
    hosts += [client.host for client in world.clients]
    for host in hosts:
        if not host.dead:
            problems += _of_host(host)
    return problems


def _of_system(system: System) -> Iterator[str]:
    pings = [p for p in system._pending.values() if p.owner.address.name == "root"]
    if len(system._pending) > len(pings):
        waiting = [f"{p.owner.address} for {p.to}" for p in system._pending.values() if p not in pings]
        yield f"{system.process}: waiting for answers: {waiting}"
    asked = [r for r in system._incoming.values() if r.cell.address.name != KERNEL]
    if asked:
        yield f"{system.process}: open requests: {[r.message.TAG for r in asked]}"
    for cell in system.cells.values():
        if len(cell.mailbox):
            yield f"{system.process}: {len(cell.mailbox)} messages in the mailbox of {cell.address}"


def _of_host(host: Host) -> Iterator[str]:
    """Tasks that are no actor's, no kernel's and no part of the root."""
    for task in host.unfinished():
        name = task.get_name()
        expected = "#" in name or name.startswith(("kernel ", "pulse ", "look", host.name))
        if not expected or name.endswith(" task") or " " in name.partition("#")[2]:
            coroutine = getattr(task.get_coro(), "__qualname__", "")
            yield f"{host.name}: task {name!r} ({coroutine}) goes on"
