"""The client's side of a profile: asks the worker and, at the same time, the root."""

from __future__ import annotations

import asyncio

from sgl_actors.actors.microkernel.record import Record, Recorded
from sgl_actors.actors.node.ask import Asker
from sgl_actors.actors.node.profile import NodeProfile, summarise
from sgl_actors.actors.worker.messages import Profile, Profiled
from sgl_actors.errors import InvalidRequest

LONGEST = 60.0
"""Seconds of a profile at most: it is kept in memory until its end."""
SLACK = 30.0
"""Seconds beyond its own in which a profile comes: the step that runs is waited for."""


class ProfileClient(Asker):
    """Takes profiles."""

    async def profile(self, seconds: float, *, slices: bool = False) -> NodeProfile:
        """Where the node's time goes for so long; `slices` also keeps single operations, for a trace.

        Raises:
            InvalidRequest: not more than 0, or above `LONGEST`.
            Overloaded: another profile is being taken.
        """
        check_seconds(seconds)
        await self.ready()
        limit = seconds + SLACK
        asked = Profile(seconds, slices)
        try:
            async with asyncio.TaskGroup() as group:
                worker = group.create_task(
                    self.ctx.call(self.at("worker/0"), asked, Profiled, timeout=limit, control=True)
                )
                root = group.create_task(
                    self.ctx.call("root", Record(seconds), Recorded, timeout=limit, control=True)
                )
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return summarise(worker.result(), root.result())


def check_seconds(seconds: float) -> None:
    """Raise `InvalidRequest` for what is no length of a profile."""
    if not 0 < seconds <= LONGEST:
        raise InvalidRequest(
            f"seconds: expected more than 0 and at most {LONGEST:g}, got {seconds:g}", param="seconds"
        )
