"""The node's `programs` actor: runs recorded programs, and knows which programs run in clients.

Owns: the streams of the graphs it runs (actors below it), and the list of programs that clients have announced.
In: `RunGraph`, `ListPrograms`, `ProgramStarted`, `ProgramEnded`. Out: what streams send to the node.
When it crashes its graphs end with it and their askers get `ActorDown`, whereupon `NodeClient.run_graph` has its successor run them from the start: a graph
gives the same again with the same seed. Programs in clients run on and announce their ends to the successor, which does not know them and ignores that. A class
that is swapped in gets what `handover` says: the streams of its graphs go on.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

import msgspec

from sgl_actors.actors.microkernel import Actor, Address, Context, Down, Message, Request, Snapshot
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.programs.handover import LAYOUT, Announced, ProgramsState, Running, Waiting
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
from sgl_actors.errors import ActorDown, InvalidRequest, Overloaded, RemoteError, SglActorsError
from sgl_actors.lang.ir import Fork
from sgl_actors.lang.prompt import Prompt
from sgl_actors.lang.protocols import Client

MOST_STREAMS = 65536
"""Of one graph, those that nobody gave nodes included."""
MOST_ANNOUNCED = 65536
"""Programs of clients that are listed; more run unlisted."""


@dataclass
class Driven:
    """A graph that runs. `task` puts it under way until it has `begun`, and waits for its report from then on."""

    id: str
    request: Request
    root: Address
    deadline: float
    begun: bool = False
    task: asyncio.Task[None] | None = None


class ProgramsActor(Actor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options = msgspec.convert(context.config.get("programs", {}), Options)
        self._client: Client = NodeClient(context)
        self._frames = Frames(self._client)
        self._programs: dict[str, Announced] = {}
        self._graphs: dict[str, Driven] = {}
        self._waiting: list[tuple[RunGraph, Request]] = []
        self._settling = False
        self._succeeded = self._failed = self._unexpected = 0

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See `Actor.receive`."""
        match message:
            case RunGraph() if request.kind == "call":
                self._run(message, request)
            case ListPrograms():
                return self._list()
            case ProgramStarted(id_) | ProgramEnded(id_) if not self._is_of(id_, request.sender):
                self._unexpected += 1
            case ProgramStarted(id_, name) if len(self._programs) < MOST_ANNOUNCED:
                self._programs[id_] = Announced(id_, name, self.ctx.now(), request.sender)
                self.ctx.monitor(request.sender)
            case ProgramEnded(id_, error):
                self._ended(id_, error)
            case Down(address):
                for id_ in [p.id for p in self._programs.values() if p.where == address]:
                    self._ended(id_, "actor_down")
            case _ if request.kind == "cast":
                self._unexpected += 1
                self.log.warning("unexpected message", message=message.TAG, sender=str(request.sender))
            case _:
                raise InvalidRequest(f"the programs actor does not take {message.TAG} as a {request.kind}")
        return None

    def statistics(self) -> dict[str, float]:
        """See `Actor.statistics`."""
        return {
            "programs": len(self._programs),
            "programs_succeeded_total": self._succeeded,
            "programs_failed_total": self._failed,
            "programs_unexpected_total": self._unexpected,
        }

    def _list(self) -> Programs:
        rows = [
            ProgramRow(p.id, p.name, "node" if p.where is None else str(p.where), self.ctx.now() - p.since)
            for p in self._programs.values()
        ]
        return Programs(rows, self._succeeded, self._failed)

    def _is_of(self, id_: str, sender: Address) -> bool:
        """Whether a program is `sender`'s, or not known: nobody speaks for the programs of another process."""
        known = self._programs.get(id_)
        return known is None or (known.where is not None and known.where.endpoint == sender.endpoint)

    def _ended(self, id_: str, error: str) -> None:
        if self._programs.pop(id_, None) is not None:
            self._succeeded += not error
            self._failed += bool(error)

    # -- graphs -------------------------------------------------------------------------------------------

    def _run(self, message: RunGraph, request: Request) -> None:
        if len(self._graphs) + len(self._waiting) >= self._options.limit:
            raise Overloaded(f"{len(self._graphs)} graphs are running ([programs] limit)")
        check(message)
        if self._settling:
            self._waiting.append((message, request))
            return
        setup = self._set_up(message)
        ctx = self.ctx
        root = ctx.spawn(StreamActor, setup.actor("0"), {"stream": {"setup": setup, "path": "0"}})
        request.on_cancel(lambda: ctx.stop(root, "asker is gone"))
        self._programs[setup.program] = Announced(setup.program, message.name, ctx.now())
        graph = self._graphs[setup.program] = Driven(setup.program, request, root, setup.deadline)
        graph.task = ctx.task(self._begin(graph, message), name=f"graph {setup.program} begins")

    def _set_up(self, message: RunGraph) -> Setup:
        now = self.ctx.now()
        return Setup(
            program=f"graph-{secrets.token_hex(5)}",
            name=message.name,
            client=self._client,
            frames=self._frames,
            seed=message.seed,
            deadline=now + min(message.timeout, self._options.timeout),
            sampling=message.sampling,
            priority=message.priority,
            cache_salt=message.cache_salt,
            fork_hint=message.fork_hint,
            started=now,
        )

    async def _begin(self, graph: Driven, message: RunGraph) -> None:
        """Hand every stream its nodes, then let the root begin, so that what one refers to has reached the other."""
        try:
            addresses = {"0": graph.root}
            for stream in message.graph.streams:
                ask = Append(list(stream.nodes))
                answer = await self.ctx.call(addresses[stream.path], ask, Appended, trace=graph.id)
                children = [child for group in answer.children for child in group]
                addresses.update({f"{stream.path}.{index}": child for index, child in enumerate(children)})
            self.ctx.cast(graph.root, Begin(Prompt()))
        except SglActorsError as failure:
            self._end(graph, _own(failure))
            return
        graph.begun = True
        if not self._settling:
            self._collect(graph)

    def _collect(self, graph: Driven) -> None:
        graph.task = self.ctx.task(self._report(graph), name=f"graph {graph.id}")

    async def _report(self, graph: Driven) -> None:
        timeout = max(0.001, graph.deadline - self.ctx.now())
        try:
            self._end(
                graph, await self.ctx.call(graph.root, Finish(), Report, timeout=timeout, trace=graph.id)
            )
        except SglActorsError as failure:
            self._end(graph, _own(failure))

    def _end(self, graph: Driven, outcome: Report | SglActorsError) -> None:
        """Answer its asker, and forget it."""
        if isinstance(outcome, Report):
            failure = outcome.outcome.failure
            self._ended(graph.id, failure.code if failure else "")
            graph.request.reply(outcome)
        else:
            self._ended(graph.id, outcome.code)
            graph.request.fail(outcome)
        del self._graphs[graph.id]
        self.ctx.stop(graph.root, "graph done")

    # -- swap ---------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let graphs that are being put under way be so, and wait for no report; the streams go on."""
        self._settling = True
        graphs = list(self._graphs.values())
        beginning = [graph.task for graph in graphs if graph.task is not None and not graph.begun]
        if beginning:
            await asyncio.wait(beginning)
        reporting = [graph.task for graph in graphs if graph.task is not None and not graph.task.done()]
        for task in reporting:
            task.cancel()
        if reporting:
            await asyncio.wait(reporting)

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        graphs = list(self._graphs.values())
        requests = [graph.request for graph in graphs] + [request for _, request in self._waiting]
        state = ProgramsState(
            list(self._programs.values()),
            [Running(graph.id, graph.root, graph.deadline, index) for index, graph in enumerate(graphs)],
            [Waiting(message, index) for index, (message, _) in enumerate(self._waiting, len(graphs))],
            self._succeeded,
            self._failed,
            self._unexpected,
        )
        return Snapshot.of(LAYOUT, state, requests=requests)

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on with every graph."""
        state = snapshot.read(LAYOUT, ProgramsState)
        requests: list[Request] = snapshot.handle("requests", list)
        self._programs = {one.id: one for one in state.programs}
        self._graphs = {
            one.id: Driven(one.id, requests[one.request], one.root, one.deadline, begun=True)
            for one in state.graphs
        }
        self._waiting = [(one.message, requests[one.request]) for one in state.waiting]
        self._succeeded, self._failed = state.succeeded, state.failed
        self._unexpected = state.unexpected
        self.resume()

    def resume(self) -> None:
        """Wait for the reports again, and begin what has come meanwhile."""
        self._settling = False
        for graph in self._graphs.values():
            if graph.begun:
                self._collect(graph)
        waiting, self._waiting = self._waiting, []
        for message, request in waiting:
            try:
                self._run(message, request)
            except SglActorsError as error:
                request.fail(error)


def _own(failure: SglActorsError) -> SglActorsError:
    """The end of a stream is the graph's failure, not this actor's, whose askers would ask again."""
    return (
        RemoteError(f"a stream of the graph has ended: {failure}")
        if isinstance(failure, ActorDown)
        else failure
    )


def check(message: RunGraph) -> None:
    """`InvalidRequest` for a graph whose streams do not fit its forks, or are too many."""
    counts = [
        node.count for stream in message.graph.streams for node in stream.nodes if isinstance(node, Fork)
    ]
    if any(count < 0 for count in counts) or sum(counts) >= MOST_STREAMS:
        raise InvalidRequest(
            f"graph: forks of {sum(counts)} streams, at most {MOST_STREAMS - 1} are taken", param="graph"
        )
    expected = {"0"}
    for stream in message.graph.streams:
        if stream.path not in expected:
            raise InvalidRequest(f"graph: no fork before it begins stream {stream.path!r}", param="graph")
        expected.remove(stream.path)
        count = sum(node.count for node in stream.nodes if isinstance(node, Fork))
        expected |= {f"{stream.path}.{index}" for index in range(count)}
    if "0" in expected:
        raise InvalidRequest("graph: there is no root stream '0'", param="graph")
