"""The node's `programs` actor: runs recorded programs, and knows which programs run in clients.

Owns: the streams of the graphs it runs (actors below it), and the list of programs that clients have announced.
In: `RunGraph`, `ListPrograms`, `ProgramStarted`, `ProgramEnded`. Out: what streams send to the node.
When it crashes its graphs end with it and their askers get `ActorDown`; programs in clients run on and announce their ends to
the successor, which does not know them and ignores that.
"""

from __future__ import annotations

import secrets

import msgspec

from sgl_actors.actors.microkernel import Actor, Address, Context, Down, Message, Request
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.programs.messages import (
    Append,
    Appended,
    Begin,
    Finish,
    ListPrograms,
    Options,
    ProgramEnded,
    ProgramRow,
    Programs,
    ProgramStarted,
    Report,
    RunGraph,
)
from sgl_actors.actors.programs.setup import Frames, Setup
from sgl_actors.actors.programs.stream_actor import StreamActor
from sgl_actors.errors import InvalidRequest, Overloaded, SglActorsError
from sgl_actors.lang.ir import Fork
from sgl_actors.lang.prompt import Prompt
from sgl_actors.lang.protocols import Client


class Announced(msgspec.Struct):
    """A program that runs."""

    id: str
    name: str
    since: float
    where: Address | None = None


class ProgramsActor(Actor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options = msgspec.convert(context.config.get("programs", {}), Options)
        self._client: Client = NodeClient(context)
        self._frames = Frames(self._client)
        self._programs: dict[str, Announced] = {}
        self._graphs = self._succeeded = self._failed = 0

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See `Actor.receive`."""
        match message:
            case RunGraph():
                self._run(message, request)
            case ListPrograms():
                return self._list()
            case ProgramStarted(id_, name):
                self._programs[id_] = Announced(id_, name, self.ctx.now(), request.sender)
                self.ctx.monitor(request.sender)
            case ProgramEnded(id_, error):
                self._ended(id_, error)
            case Down(address):
                for id_ in [p.id for p in self._programs.values() if p.where == address]:
                    self._ended(id_, "actor_down")
            case _:
                return await super().receive(message, request)
        return None

    def statistics(self) -> dict[str, float]:
        """See `Actor.statistics`."""
        return {
            "programs": len(self._programs),
            "programs_succeeded_total": self._succeeded,
            "programs_failed_total": self._failed,
        }

    def _list(self) -> Programs:
        rows = [
            ProgramRow(p.id, p.name, "node" if p.where is None else str(p.where), self.ctx.now() - p.since)
            for p in self._programs.values()
        ]
        return Programs(rows, self._succeeded, self._failed)

    def _ended(self, id_: str, error: str) -> None:
        if self._programs.pop(id_, None) is not None:
            self._succeeded += not error
            self._failed += bool(error)

    def _run(self, message: RunGraph, request: Request) -> None:
        if self._graphs >= self._options.limit:
            raise Overloaded(f"{self._graphs} graphs are running ([programs] limit)")
        check(message)
        timeout = min(message.timeout, self._options.timeout)
        setup = Setup(
            program=f"graph-{secrets.token_hex(5)}",
            name=message.name,
            client=self._client,
            frames=self._frames,
            seed=message.seed,
            deadline=self.ctx.now() + timeout,
            sampling=message.sampling,
            priority=message.priority,
            cache_salt=message.cache_salt,
            fork_hint=message.fork_hint,
            started=self.ctx.now(),
        )
        root = self.ctx.spawn(StreamActor, setup.actor("0"), {"stream": {"setup": setup, "path": "0"}})
        request.on_cancel(lambda: self.ctx.stop(root, "asker is gone"))
        self._programs[setup.program] = Announced(setup.program, message.name, self.ctx.now())
        self._graphs += 1
        self.ctx.task(self._drive(message, request, setup, root), name=f"graph {setup.program}")

    async def _drive(self, message: RunGraph, request: Request, setup: Setup, root: Address) -> None:
        """Hand every stream its nodes, then let the root begin, so that what one refers to has reached the other."""
        error = ""
        try:
            addresses = {"0": root}
            for stream in message.graph.streams:
                ask = Append(list(stream.nodes))
                answer = await self.ctx.call(addresses[stream.path], ask, Appended, trace=setup.program)
                children = [child for group in answer.children for child in group]
                addresses.update({f"{stream.path}.{index}": child for index, child in enumerate(children)})
            self.ctx.cast(root, Begin(Prompt()))
            timeout = max(0.001, setup.deadline - self.ctx.now())
            report = await self.ctx.call(root, Finish(), Report, timeout=timeout, trace=setup.program)
            error = report.outcome.failure.code if report.outcome.failure else ""
            request.reply(report)
        except SglActorsError as failure:
            error = failure.code
            request.fail(failure)
        finally:
            self._graphs -= 1
            self._ended(setup.program, error)
            self.ctx.stop(root, "graph done")


def check(message: RunGraph) -> None:
    """`InvalidRequest` for a graph whose streams do not fit its forks."""
    expected = {"0"}
    for stream in message.graph.streams:
        if stream.path not in expected:
            raise InvalidRequest(f"graph: no fork before it begins stream {stream.path!r}", param="graph")
        expected.remove(stream.path)
        count = sum(node.count for node in stream.nodes if isinstance(node, Fork))
        expected |= {f"{stream.path}.{index}" for index in range(count)}
    if "0" in expected:
        raise InvalidRequest("graph: there is no root stream '0'", param="graph")
