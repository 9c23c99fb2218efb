"""Actor classes that a node of a case runs in place of its own: ones that can be told to block, whose restore fails, that crash."""

from __future__ import annotations

import asyncio
import time

from sgl_actors.actors.cache.actor import CacheActor
from sgl_actors.actors.gateway.actor import GatewayActor
from sgl_actors.actors.grammar.actor import GrammarActor
from sgl_actors.actors.microkernel import Actor, Message, Request, Snapshot
from sgl_actors.actors.programs.actor import ProgramsActor
from sgl_actors.actors.scheduler.actor import SchedulerActor
from sgl_actors.actors.tokenizer.actor import TokenizerActor
from sgl_actors.actors.worker.actor import WorkerActor
from sgl_actors.actors.worker.fake import FakeWorker

CAUSE = "the chaos case says so"


class Block(Message):
    """Cast: block the event loop for so many seconds, asleep or `busy`."""

    seconds: float
    busy: bool = False


class Twin(Actor):
    """In front of an actor's class: the same actor, but for `Block`."""

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Block, or do what the class behind does."""
        if not isinstance(message, Block):
            return await super().receive(message, request)
        until = time.monotonic() + message.seconds
        if message.busy:
            while time.monotonic() < until:
                pass
        else:
            time.sleep(message.seconds)
        return None


class Unrestorable(Actor):
    """In front of an actor's class: takes no snapshot."""

    async def restore(self, snapshot: Snapshot) -> None:  # noqa: ARG002 - the protocol's
        """Raises."""
        raise RuntimeError(CAUSE)


class TwinCache(Twin, CacheActor):
    """A cache."""


class TwinFakeWorker(Twin, FakeWorker):
    """A fake worker."""


class TwinWorker(Twin, WorkerActor):
    """A worker."""


class TwinScheduler(Twin, SchedulerActor):
    """A scheduler."""


class TwinGrammar(Twin, GrammarActor):
    """A grammar actor."""


class TwinTokenizer(Twin, TokenizerActor):
    """A tokenizer."""


class TwinPrograms(Twin, ProgramsActor):
    """A programs actor."""


class TwinGateway(Twin, GatewayActor):
    """A gateway."""


class UnrestorableCache(Unrestorable, CacheActor):
    """A cache."""


class UnrestorableFakeWorker(Unrestorable, FakeWorker):
    """A fake worker."""


class UnrestorableScheduler(Unrestorable, SchedulerActor):
    """A scheduler."""


class UnrestorableGrammar(Unrestorable, GrammarActor):
    """A grammar actor."""


class UnrestorableTokenizer(Unrestorable, TokenizerActor):
    """A tokenizer."""


class UnrestorablePrograms(Unrestorable, ProgramsActor):
    """A programs actor."""


class UnrestorableGateway(Unrestorable, GatewayActor):
    """A gateway."""


class FailsToStart(Actor):
    """Its start raises."""

    async def start(self) -> None:
        """Raises."""
        raise RuntimeError(CAUSE)


class FailsSoon(Actor):
    """It starts, and a task of it raises."""

    async def start(self) -> None:
        """Begin to fail."""
        self.ctx.task(self._fail(), name="fail")

    async def _fail(self) -> None:
        await asyncio.sleep(0.01)
        raise RuntimeError(CAUSE)


CLASSES = {
    "cache": ("sgl_actors.actors.cache.actor:CacheActor", "Cache"),
    "worker/0": ("sgl_actors.actors.worker.fake:FakeWorker", "FakeWorker"),
    "scheduler": ("sgl_actors.actors.scheduler.actor:SchedulerActor", "Scheduler"),
    "grammar": ("sgl_actors.actors.grammar.actor:GrammarActor", "Grammar"),
    "tokenizer": ("sgl_actors.actors.tokenizer.actor:TokenizerActor", "Tokenizer"),
    "programs": ("sgl_actors.actors.programs.actor:ProgramsActor", "Programs"),
    "gateway": ("sgl_actors.actors.gateway.actor:GatewayActor", "Gateway"),
}
"""By actor: its usual class (with the fake worker), and the end of the names of its twin and its unrestorable double."""


def twin(actor: str) -> str:
    """Path of an actor's twin."""
    return f"{__name__}:Twin{CLASSES[actor][1]}"


def unrestorable(actor: str) -> str:
    """Path of the double whose restore raises."""
    return f"{__name__}:Unrestorable{CLASSES[actor][1]}"


def fails(kind: str) -> str:
    """Path of a class that fails: ``ToStart``, ``Soon``, or ``ToLoad``."""
    return "benchmarks.chaos.unloadable:Nothing" if kind == "ToLoad" else f"{__name__}:Fails{kind}"
