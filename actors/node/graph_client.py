"""Running a compiled graph in a node, whatever happens to the actor that drives it."""

from __future__ import annotations

import msgspec

from sgl_actors.actors.node.ask import Asker
from sgl_actors.actors.programs.messages import Report, RunGraph
from sgl_actors.errors import ActorDown, DeadlineExceeded


class GraphClient(Asker):
    """Asks the node's `programs` actor."""

    async def run_graph(self, graph: RunGraph, *, trace: str = "") -> Report:
        """Run a recorded program and return what its root stream holds.

        If the `programs` actor ends meanwhile its successor runs the graph from the start with the same seed, which gives the same outcome; what
        was computed before is mostly found in the cache.

        Raises:
            InvalidRequest: the streams do not fit the forks.
            Overloaded: too many graphs run (`[programs] limit`).
            DeadlineExceeded: after `graph.timeout` seconds, restarts included.
            SglActorsError: what ended the graph as a whole; a failure of the program itself stands in the report.
        """
        programs = self.ctx.peer("programs")
        deadline = self.ctx.now() + graph.timeout
        while True:
            left = deadline - self.ctx.now()
            if left <= 0:
                raise DeadlineExceeded(f"graph {graph.name!r}: no outcome within {graph.timeout:g} s")
            attempt = msgspec.structs.replace(graph, timeout=left)
            try:
                return await self.ctx.call(programs, attempt, Report, timeout=left, trace=trace)
            except ActorDown as error:
                await self.wait_for(programs, error, deadline)
