"""A scheduler that admits the shortest job first, and ages those that wait.

A job's work is its prompt tokens that are not cached, and what its output is expected to cost. What has been computed for others since it came is
taken off, times `age`: so a long job goes up as it waits, and with `age` at 0 this is plain shortest-job-first. The rest (batches, pages, recovery,
the bound on being overtaken) is the scheduler's it derives from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import msgspec

from sgl_actors.actors.microkernel import Context, Message, Request, Snapshot
from sgl_actors.actors.scheduler.actor import SchedulerActor
from sgl_actors.actors.scheduler.estimate import OutputEstimate
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.messages import Configure
from sgl_actors.actors.scheduler.policy import Waiting
from sgl_actors.errors import ConfigError, InvalidRequest

W = TypeVar("W", bound=Waiting)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[actors.scheduler.options]`` of node.toml.

    Attributes:
        age: tokens that a job gains on newer ones for each token computed while it waits.
        output: what an output token costs, in prompt tokens.
    """

    age: float = 0.1
    output: float = 4.0

    def __post_init__(self) -> None:
        if not (0 <= self.age <= 1 and self.output >= 0):
            raise ValueError(
                f"expected age from 0 to 1 and output from 0, got {self.age:g} and {self.output:g}"
            )


class ShortestJob:
    """Least work first, less what has been computed while it waited; see the module."""

    name = "shortest-first"

    def __init__(self, options: Options, expected: OutputEstimate) -> None:
        self.options = options
        self.expected = expected

    def work(self, one: Waiting) -> float:
        """What is left to do of a job, in prompt tokens."""
        job = cast("Generation", one)
        done = job.length - len(job.spec.prompt)
        output = min(job.spec.max_tokens - done, self.expected.expect(done))
        return one.uncached + self.options.output * max(0, output)

    def order(self, waiting: Sequence[W], processed: int) -> list[W]:
        """All of `waiting`, the first to admit first; priorities come first, as under every policy."""

        def rank(one: W) -> tuple[int, float, int]:
            waited = self.options.age * (processed - one.since)
            return -one.priority, self.work(one) - waited, one.arrival

        return sorted(waiting, key=rank)


class ShortestFirst(SchedulerActor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        try:
            options = msgspec.convert(context.config.get("options", {}), Options, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"[actors.scheduler.options]: {error}") from None
        self._policy = ShortestJob(options, self.core.estimate)
        self.core.queue.policy = self._policy

    async def receive(self, message: Message, request: Request) -> Message | None:
        """As the scheduler, but that its order is its own."""
        if isinstance(message, Configure) and message.policy is not None:
            raise InvalidRequest(
                "policy: this node's scheduler has an order of its own, shortest-first", param="policy"
            )
        answer = await super().receive(message, request)
        self.core.queue.policy = self._policy
        return answer

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on with the requests of the scheduler that was, in this order."""
        await super().restore(snapshot)
        self._policy.expected = self.core.estimate
        self.core.queue.policy = self._policy
