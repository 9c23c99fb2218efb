"""The root of a node: starts processes, supervises actors, and is the registry's only writer.

Messages in: `Hello`, `ActorReady`, `ActorExit` from kernels; `ListActors`, `RestartActor`, `SwapActor`, `StopNode`, `Record` from outside. Out: `NameUp`, `NameDown`,
`PeerDown`, `StartActor`, `StopActor`, `SwapClass`, `Terminate`, `Ping`, `Record` to every kernel. What to restart is decided by `supervisor.Supervisor`; this is its shell.

Liveness in layers: the exit of a process (pidfd, milliseconds), its state (stopped at two looks, 2 s), ZMTP heartbeats (a dead link, 10 s), and pings answered by each
process's own loop with a progress counter per actor (a loop that hangs, `HUNG` s; an actor stuck in one message while others wait, `STALLED` s). A process that does not
answer because others have the processors is given `STARVED` s. If the root dies, the operating system kills its children.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sgl_actors.actors.microkernel.actor import Actor, Context, Request
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.control import (
    ActorExit,
    ActorReady,
    ClassSwapped,
    Hello,
    NameDown,
    NameUp,
    PeerDown,
    PeerUp,
    StartActor,
    StopActor,
    SwapClass,
    Table,
    Terminate,
)
from sgl_actors.actors.microkernel.hosts import HUNG, Hosted, Vigil
from sgl_actors.actors.microkernel.ipc import PREFIX as IPC
from sgl_actors.actors.microkernel.ipc import socket_path
from sgl_actors.actors.microkernel.messages import (
    ActorRow,
    Actors,
    Done,
    ListActors,
    RestartActor,
    StopNode,
    SwapActor,
    Swapped,
)
from sgl_actors.actors.microkernel.process import OTHER_VERSION, Boot, Launched, Process, resident_bytes, runs
from sgl_actors.actors.microkernel.record import ProcessRecord, Record, Recorded
from sgl_actors.actors.microkernel.supervisor import Begin, ChildSpec, Effect, Supervisor
from sgl_actors.actors.microkernel.swap import LEAVE_TIMEOUT, SETTLE_TIMEOUT
from sgl_actors.actors.microkernel.wire import Message
from sgl_actors.errors import ActorDown, DeadlineExceeded, InvalidRequest, SglActorsError, SwapFailed

if TYPE_CHECKING:
    from sgl_actors.actors.microkernel.system import System

ROOT = "root"
LOOK = 2.0
"""Seconds between two looks whether a client whose connection broke is dead; as long as it is not, it may go on."""
EXITS = {
    OTHER_VERSION: "the files of sgl-actors are of another version than this node, which runs on: stop it and start it again"
}
"""What exit codes of processes mean."""
START_SLACK = 5.0
"""Seconds beyond an actor's own start deadline after which its process is killed."""


class Trial:
    """A new incarnation with another specification, until it has started or has not."""

    def __init__(self, before: ChildSpec, began: float, *, first: bool = False) -> None:
        """`first`: there was none before."""
        self.before, self._first = before, first
        self.outcome: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._began = began

    def started(self, now: float) -> None:
        """It is up."""
        if not self.outcome.done():
            self.outcome.set_result(now - self._began)

    def failed(self, reason: str) -> None:
        """It is not, and what was before is to be started again."""
        if not self.outcome.done():
            what = "cannot start" if self._first else "is started as it was"
            self.outcome.set_exception(SwapFailed(f"{self.before.name} {what}: {reason}"))

    def removed(self, name: str) -> None:
        """It will not be: the actor is ended for good."""
        if not self.outcome.done():
            self.outcome.set_exception(SwapFailed(f"{name} is removed"))


class Root(Actor):
    """See the module. Config: `system`, `supervisor`, `boot` (what every child is told), `socket_dir`, `on_done`, `drain`; `launch` if processes are not `Process`."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        self.system: System = config["system"]
        self.supervisor: Supervisor = config["supervisor"]
        self._boot: Boot = config["boot"]
        self._socket_dir: Path = config["socket_dir"]
        self._on_done: Callable[[], None] = config["on_done"]
        self._launch: Callable[[Boot, Callable[[int], None]], Launched] = config.get("launch", Process)
        self._hosts: dict[str, Hosted] = {}
        self._doubted: set[str] = set()
        self._vigil = Vigil(context, self._hosts)
        self._epochs = itertools.count(1)
        self._incarnations = itertools.count(1)
        self._where: dict[str, Hosted] = {}
        self._restarting: dict[str, list[Request]] = {}
        self._trials: dict[str, Trial] = {}
        self._removing: dict[str, asyncio.Event] = {}
        self._began = self.ctx.now()
        self.draining = False
        self._over = False

    async def start(self) -> None:
        """Take the name `root` and start the children."""
        self.system.name_up(self.ctx.address)
        self.system.on_lost = self._lost
        self.ctx.task(self._vigil.look(), name="look")
        self._apply(self.supervisor.begin())

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Handle kernels and operators."""
        match message:
            case Hello():
                return self._hello(message)
            case ActorReady():
                self._ready(message.address)
            case ActorExit():
                self._exited(message.address, message.reason, normal=message.normal, fatal=message.fatal)
            case ListActors():
                return self._list()
            case RestartActor():
                self._restart(message.name, request)
            case SwapActor():
                self._known(message.name)
                self.ctx.task(self._swap(message, request), name=f"swap {message.name}")
            case StopNode():
                own: float = self.ctx.config.get("drain", 0.0)
                self.ctx.task(self.shutdown(own if message.drain < 0 else message.drain))
                return Done()
            case Record():
                self.ctx.task(self._record(message, request), name="record")
        return None

    # -- processes ----------------------------------------------------------------------------------------

    def _hello(self, message: Hello) -> Table:
        self.system.transport.watch(message.endpoint)
        host = self._hosts.get(message.endpoint)
        if host is None:
            host = self._hosts[message.endpoint] = Hosted(message.process, message.endpoint)
            if message.client and message.endpoint in self.system.registry.gone:
                self.log.info("client is back", process=message.process)
                self.system.registry.back(message.endpoint)
                self._broadcast(PeerUp(message.endpoint))
        host.hello = True
        host.pid = message.pid
        if host.process is not None:
            self.ctx.task(self._vigil.pulse(host), name=f"pulse {host.name}")
            for name in host.starting:
                self._send_start(host, name)
        return Table(list(self.system.names.values()))

    def _broadcast(self, message: Message) -> None:
        for host in self._hosts.values():
            if host.hello:
                self.ctx.cast(host.kernel, message, control=True)

    def _lost(self, endpoint: str) -> None:
        """The transport saw a peer's connection break: a client is gone, a process of ours is stopped or dead."""
        host = self._hosts.get(endpoint)
        if host is None:
            return
        if host.process is not None:
            host.process.kill()
        elif endpoint.startswith(IPC) and socket_path(endpoint).exists() and runs(host.pid):
            if endpoint not in self._doubted:  # it was stopped, or this process was, and it has not left
                self._doubted.add(endpoint)
                asyncio.get_running_loop().call_later(LOOK, self._look_again, endpoint)
        else:
            self.log.info("client gone", process=host.name)
            self._forget(host)

    def _look_again(self, endpoint: str) -> None:
        self._doubted.discard(endpoint)
        self._lost(endpoint)

    def _forget(self, host: Hosted) -> None:
        if self._hosts.pop(host.endpoint, None) is not None:
            self.system.peer_down(host.endpoint)
            self._broadcast(PeerDown(host.endpoint))

    def _spawn(self, name: str) -> Hosted:
        label = f"{name.replace('/', '-')}.{next(self._incarnations)}"
        endpoint = f"ipc://{self._socket_dir / label}.ipc"
        host = self._hosts[endpoint] = Hosted(name, endpoint)
        boot = msgspec.structs.replace(self._boot, process=name, endpoint=endpoint)
        host.process = self._launch(boot, lambda code: self._process_ended(host, code))
        host.pid = host.process.pid
        return host

    def _process_ended(self, host: Hosted, code: int) -> None:
        self._forget(host)
        reason = f"killed by signal {-code}" if code < 0 else EXITS.get(code, f"process exited with {code}")
        names = [name for name, where in self._where.items() if where is host]
        for name in names:
            del self._where[name]
            self._settle(host, name)
            address = host.actors.get(name)
            if address is not None:
                self._announce_down(address, reason)
        counted = False
        for name in names:
            child = self.supervisor.children.get(name)
            if child is None:
                continue
            if name not in self._where and child.state != "idle":
                failed = child.state != "stopping"
                self._child_exited(
                    name,
                    reason,
                    normal=host.ending and code == 0,
                    fatal=code == OTHER_VERSION,
                    same_cause=counted,
                )
                counted = counted or failed

    @staticmethod
    def _settle(host: Hosted, name: str) -> None:
        """It is no longer starting."""
        timer = host.starting.pop(name, None)
        if timer is not None:
            timer.cancel()

    # -- actors -------------------------------------------------------------------------------------------

    def _apply(self, effects: list[Effect]) -> None:
        if self._over:
            return
        for effect in effects:
            if isinstance(effect, Begin):
                self._begin(effect.name)
            else:
                self._end(effect.name)
        if self.supervisor.done:
            self._on_done()

    def _begin(self, name: str) -> None:
        spec = self.supervisor.children[name].spec
        host = next(
            (
                h
                for h in self._hosts.values()
                if h.process is not None and h.name == spec.process and not h.ending
            ),
            None,
        )
        if host is None:
            host = self._spawn(spec.process)
        self._where[name] = host
        limit = spec.start_timeout + START_SLACK
        host.starting[name] = asyncio.get_running_loop().call_later(
            limit, self._start_expired, host, name, limit
        )
        if host.hello:
            self._send_start(host, name)

    def _start_expired(self, host: Hosted, name: str, seconds: float) -> None:
        """Its own deadline did not end it: its loop hangs, or the process never came to say hello."""
        if name in host.starting and host.process is not None:
            self.log.error("did not start in time, process killed", late=name, seconds=seconds)
            host.process.kill()

    def _send_start(self, host: Hosted, name: str) -> None:
        spec = self.supervisor.children[name].spec
        address = Address(name, next(self._epochs), host.endpoint)
        host.actors[name] = address
        start = StartActor(name, address.epoch, spec.path, spec.start_timeout, spec.settings)
        self.ctx.cast(host.kernel, start, control=True)

    def _end(self, name: str) -> None:
        host = self._where.get(name)
        if host is None:
            self._child_exited(name, "not running", normal=True)
            return
        spec = self.supervisor.children[name].spec
        address = host.actors.get(name)
        if address is not None:
            self._announce_down(address, "stopped")
        if all(other == name for other in self._where if self._where[other] is host):
            host.ending = True
            if host.hello:
                self.ctx.cast(host.kernel, Terminate("stopped"), control=True)
            elif host.process is not None:
                host.process.kill()
            self.ctx.task(self._kill_later(host, name, spec.shutdown))
        elif address is not None:
            self.ctx.cast(host.kernel, StopActor(name, address.epoch, "stopped"), control=True)
            self.ctx.task(self._kill_later(host, name, spec.shutdown))
        else:
            self._settle(host, name)
            del self._where[name]
            self._child_exited(name, "stopped before it was started", normal=True)

    async def _kill_later(self, host: Hosted, name: str, seconds: float) -> None:
        """Kill the process if the actor it holds has not stopped by then."""
        address = host.actors.get(name)
        await asyncio.sleep(seconds)
        if host.process is not None and self._where.get(name) is host and host.actors.get(name) == address:
            self.log.warning("did not stop in time, process killed", late=name, seconds=seconds)
            host.process.kill()

    def _ready(self, address: Address) -> None:
        host = self._where.get(address.name)
        if host is None or host.actors.get(address.name) != address or host.ending:
            return
        self._settle(host, address.name)
        self.system.name_up(address)
        self._broadcast(NameUp(address))
        self.log.info("up", name=str(address), process=host.name)
        for request in self._restarting.pop(address.name, []):
            request.reply(Done())
        trial = self._trials.pop(address.name, None)
        if trial is not None:
            trial.started(self.ctx.now())
        self._apply(self.supervisor.started(address.name))

    def _announce_down(self, address: Address, reason: str) -> None:
        self.system.name_down(address, reason)
        self._broadcast(NameDown(address, reason))

    def _exited(self, address: Address, reason: str, *, normal: bool, fatal: bool) -> None:
        host = self._where.get(address.name)
        if host is None or host.actors.get(address.name) != address:
            return
        self._announce_down(address, reason)
        if host.ending:
            return
        del self._where[address.name]
        del host.actors[address.name]
        self._settle(host, address.name)
        host.pulses.pop(address.name, None)
        self._child_exited(address.name, reason, normal=normal, fatal=fatal)

    def _child_exited(
        self, name: str, reason: str, *, normal: bool, fatal: bool = False, same_cause: bool = False
    ) -> None:
        child = self.supervisor.children[name]
        if child.state != "stopping":
            self.log.error("down", name=name, reason=reason)
        trial = self._trials.get(name)
        if trial is not None and child.state == "starting":
            del self._trials[name]
            trial.failed(reason)
            child.spec = trial.before
            normal = fatal = False
            same_cause = True  # the operator's class is at fault, and its asker hears of it
        now = self.ctx.now()
        self._apply(
            self.supervisor.exited(name, reason, now, normal=normal, fatal=fatal, same_cause=same_cause)
        )
        for group, cause in list(self.supervisor.given_up.items()):
            del self.supervisor.given_up[group]
            self.group_lost(group, cause)
        if name in self._removing:
            self._removing[name].set()

    def group_lost(self, group: str, reason: str) -> None:
        """A group that is not essential is being ended for good."""
        self.log.error("group given up", group=group, reason=reason)
        for name in [name for name, trial in self._trials.items() if trial.before.group == group]:
            self._trials.pop(name).failed(reason)

    def statistics_of(self, name: str) -> dict[str, float]:
        """An actor's counters as of the last pulse; also while it starts."""
        host = self._where.get(name)
        pulse = None if host is None else host.pulses.get(name)
        return {} if pulse is None else pulse.statistics

    # -- operators ----------------------------------------------------------------------------------------

    def _list(self) -> Actors:
        rows = []
        for name, child in self.supervisor.children.items():
            host = self._where.get(name)
            address = None if host is None else host.actors.get(name)
            pulse = None if host is None else host.pulses.get(name)
            rows.append(
                ActorRow(
                    name,
                    child.state,
                    0 if address is None else address.epoch,
                    child.restarts,
                    0 if pulse is None else pulse.mailbox,
                    0 if host is None else host.pid,
                    0 if host is None else resident_bytes(host.pid),
                    child.spec.process,
                    {} if pulse is None else pulse.statistics,
                )
            )
        return Actors(
            rows,
            self.supervisor.ready and not self.draining,
            self.draining,
            self.ctx.now() - self._began,
            {host.name: host.counters for host in self._hosts.values() if host.process is not None},
        )

    def _known(self, name: str) -> None:
        if name not in self.supervisor.children:
            known = ", ".join(self.supervisor.children)
            raise InvalidRequest(f"no actor {name!r}; there are {known}", param="name")
        if self.supervisor.closing:
            raise ActorDown("the node is stopping")

    def _restart(self, name: str, request: Request) -> None:
        self._known(name)
        self._restarting.setdefault(name, []).append(request)
        self._apply(self.supervisor.restart(name))

    async def _swap(self, message: SwapActor, request: Request) -> None:
        try:
            request.reply(await self.swap(message))
        except Exception as error:  # noqa: BLE001 - it is the asker's
            self._not_done(error, request, f"swap of {message.name}")

    def _not_done(self, error: Exception, request: Request, what: str) -> None:
        """Tell whoever asked for a change why it was not made. Whatever was wrong with it, the node goes on."""
        if not isinstance(error, SglActorsError):
            self.log.error("change failed", change=what, exc_info=error)
        request.fail(error)

    async def swap(self, message: SwapActor) -> Swapped:
        """Have another class take over an actor, in place where both classes know how; else by a new incarnation.

        From here on it is the class that the supervisor starts, unless the swap fails.

        Raises:
            SwapFailed: the actor goes on as it was, or was started again with the class it had.
            ConfigError: there is no such class.
        """
        name = message.name
        child, host = self.supervisor.children[name], self._where.get(name)
        address = None if host is None else host.actors.get(name)
        if host is None or address is None or child.state != "running":
            raise SwapFailed(f"{name} is {child.state}, not running")
        path = message.path or child.spec.path
        settings = overlaid(child.spec.settings, message.settings, same_class=path == child.spec.path)
        spec = msgspec.structs.replace(child.spec, path=path, settings=settings)
        if not message.restart:
            swap = SwapClass(name, address.epoch, path, spec.start_timeout, settings)
            patience = 2 * SETTLE_TIMEOUT + LEAVE_TIMEOUT + spec.start_timeout + START_SLACK
            host.importing += 1
            try:
                answer = await self.ctx.call(host.kernel, swap, ClassSwapped, timeout=patience, control=True)
            except (ActorDown, DeadlineExceeded) as error:
                raise SwapFailed(f"{name} went down or hung meanwhile: {error.message}") from None
            finally:
                host.importing -= 1
            if answer.in_place:
                if self.supervisor.children.get(name) is child:
                    self.supervisor.changed(name, spec, self.ctx.now())
                self.log.info("swapped", name=name, path=path, held=round(answer.held, 4))
                return Swapped(in_place=True, held=answer.held, path=path)
        return await self.replace(name, spec)

    async def replace(self, name: str, spec: ChildSpec) -> Swapped:
        """End the incarnation and start one as `spec` says; if that does not start, one as it was, and `SwapFailed`."""
        child = self.supervisor.children[name]
        if name in self._trials or child.state != "running":
            raise SwapFailed(f"{name} is being replaced already")
        trial = self._trials[name] = Trial(child.spec, self.ctx.now())
        self.supervisor.changed(name, spec, self.ctx.now())
        self._apply(self.supervisor.restart(name))
        held = await trial.outcome
        self.log.info("replaced", name=name, path=spec.path, held=round(held, 4))
        return Swapped(in_place=False, held=held, path=spec.path)

    async def add(self, *specs: ChildSpec) -> None:
        """Start more actors and wait until they are up; `SwapFailed` if one does not start, and none is there then."""
        trials = [Trial(spec, self.ctx.now(), first=True) for spec in specs]
        for spec, trial in zip(specs, trials, strict=True):
            effects = self.supervisor.add(spec)
            self._trials[spec.name] = trial
            self._apply(effects)
        try:
            await asyncio.gather(*(trial.outcome for trial in trials))
        except BaseException:
            for spec in reversed(specs):
                await self.remove(spec.name)
            raise

    async def remove(self, name: str) -> None:
        """End an actor for good and wait until it has ended."""
        trial = self._trials.pop(name, None)
        if trial is not None:
            trial.removed(name)
        for request in self._restarting.pop(name, []):
            request.fail(ActorDown(f"{name} is removed"))
        if name in self.supervisor.children:
            ended = self._removing.setdefault(name, asyncio.Event())
            self._apply(self.supervisor.remove(name))
            while name in self.supervisor.children:
                ended.clear()
                await ended.wait()
            self._removing.pop(name, None)

    async def _record(self, message: Record, request: Request) -> None:
        """Have all processes record at once; one that goes down meanwhile is left out."""
        hosts = [host for host in self._hosts.values() if host.process is not None and host.hello]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._recorded(host, message)) for host in hosts]
        request.reply(Recorded([process for task in tasks for process in task.result()]))

    async def _recorded(self, host: Hosted, message: Record) -> list[ProcessRecord]:
        try:
            answer = await self.ctx.call(
                host.kernel, message, Recorded, timeout=message.seconds + HUNG, control=True
            )
        except SglActorsError as error:
            self.log.warning("process not recorded", process=host.name, why=error.code)
            return []
        return answer.processes

    async def drain(self, seconds: float) -> None:
        """Let work in flight finish; a node knows what that is."""

    async def shutdown(self, drain: float) -> None:
        """Drain, then stop every child in reverse order; a second call skips what is left of the drain."""
        if not self.draining:
            self.draining = True
            self.log.info("stopping", drain=drain)
            await self.drain(drain)
        self._apply(self.supervisor.shutdown())

    async def stop(self) -> None:
        """Kill what is left, and see that it is gone."""
        self._over = True
        processes = [host.process for host in self._hosts.values() if host.process is not None]
        for process in processes:
            process.kill()
        for process in processes:
            await process.ended.wait()


def overlaid(settings: str, changes: str, *, same_class: bool) -> str:
    """An actor's own sections with others laid over them, as JSON; what was meant for another class alone is left out."""
    sections: dict[str, Any] = msgspec.json.decode(settings) if settings else {}
    if not same_class:
        sections.pop("options", None)
    try:
        sections |= msgspec.json.decode(changes, type=dict[str, Any]) if changes else {}
    except msgspec.MsgspecError as error:
        raise InvalidRequest(
            f"settings: expected a JSON object of sections: {error}", param="settings"
        ) from None
    return msgspec.json.encode(sections).decode() if sections else ""


def root_endpoint(socket_dir: Path) -> str:
    """Where the root of a node listens."""
    return f"ipc://{socket_dir / 'root.ipc'}"
