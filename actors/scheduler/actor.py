"""The scheduler actor. It owns every request in flight: its tokens, its place in line, its lease, its deadline.

In, from askers: `Submit`, `Stop`, `Abort`, `FlushCache`, `DescribeModel`, `Configure`, `Drain`; from the worker `StepDone`,
`NeedFull`, `ResetDone`.
Out: `Progress` to whoever submitted, one per step; `Step`, `Describe`, `Reset` to the worker; `Match`, `Grant`, `Commit`,
`Reset` and `Flush` to the cache. Questions are asked from tasks, so that no round trip to the cache holds up a step. All of that
goes by the control lane, in order; where even that is full, commits and ends are kept and sent again, and tokens are left
out: the submitter sees the gap and asks for them.

When worker or cache goes down, requests wait with the tokens they have until both are back, and go on; those that were in
the step of a crash run again in halves (`quarantine`). When a submitter goes down, its requests go on for some seconds, for
its successor to take over. When the scheduler itself crashes, its requests are lost: the askers submit them again with
the tokens they have received; the new incarnation begins with an epoch of its own, so nothing of the old one is
mistaken for its work.

Another class can take its place while requests run (`handover`): it lets the steps in flight end and gives all pages back, a matter of one step. What it does not
understand or must not do (a message of a kind it does not take, an answer of somebody who is not its worker) it counts, and goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from sgl_actors.actors.cache.messages import Commit, Flush, Grant, Granted, Match, Matched, Pool
from sgl_actors.actors.cache.messages import Reset as ResetCache
from sgl_actors.actors.microkernel import (
    Actor,
    Address,
    Context,
    Down,
    MailboxSpec,
    Message,
    Request,
    Snapshot,
    Up,
)
from sgl_actors.actors.scheduler.core import SchedulerCore
from sgl_actors.actors.scheduler.effects import Effect, Note, Report, ToCache, ToWorker
from sgl_actors.actors.scheduler.handover import LAYOUT, SchedulerState, Unsent
from sgl_actors.actors.scheduler.messages import (
    Abort,
    Configuration,
    Configure,
    DescribeModel,
    Drain,
    Drained,
    FlushCache,
    Flushed,
    Options,
    Progress,
    Stop,
    Submit,
    Tick,
)
from sgl_actors.actors.scheduler.rounds import RETRY
from sgl_actors.actors.worker.messages import Describe, ModelInfo, NeedFull, ResetDone, StepDone
from sgl_actors.errors import (
    ActorDown,
    InvalidRequest,
    NotReady,
    Overloaded,
    ProtocolError,
    SglActorsError,
)

WORKER = "worker/0"
CACHE = "cache"
CACHE_TIMEOUT = 10.0
"""Seconds until a question to the cache counts as lost; it answers within milliseconds."""
WORKER_TIMEOUT = 60.0
"""Seconds until the worker is asked again what it serves."""
EPOCH_SHIFT = 20
"""Batch epochs that one incarnation of the scheduler may use, as a power of two."""
ORDERED_DOWN = "stopped"
"""Reason of the `Down` of an actor that an operator stopped or restarted."""


def first_epoch(incarnation: int) -> int:
    """Where the batch epochs of an incarnation begin; those of two incarnations never meet."""
    return (incarnation << EPOCH_SHIFT) & (2**62 - 1)


class SchedulerActor(Actor):
    """See the module."""

    mailbox = MailboxSpec(capacity=8192)
    """Its control lane holds four times as many: a `Submit`, `Stop` and `Abort` for each request that `queue` lets wait, by far."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        options = msgspec.convert(context.config["scheduler"], Options)
        self.core = SchedulerCore(
            options, epoch=first_epoch(context.address.epoch), stopwatch=time.perf_counter
        )
        self._worker: Address | None = None
        self._cache: Address | None = None
        self._owners: set[Address] = set()
        self._drains: list[Request] = []
        self._flushes: list[Request] = []
        self._unsent: list[Report] = []
        self._timer: tuple[float, Callable[[], None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing = 0
        self._rest: asyncio.Event | None = None

    async def start(self) -> None:
        """Look out for worker and cache."""
        self.ctx.watch(self.ctx.peer(WORKER))
        self.ctx.watch(self.ctx.peer(CACHE))

    async def receive(self, message: Message, request: Request) -> Message | None:
        """Handle one message; see the module."""
        try:
            return self._handle(message, request)
        except SglActorsError as error:
            if request.kind != "cast":
                raise
            self._refuse(message, request, str(error))
            return None

    def _handle(self, message: Message, request: Request) -> Message | None:
        core = self.core
        match message:
            case StepDone() | ResetDone() | NeedFull() if request.sender != self._worker:
                self._refuse(message, request, "not our worker")
            case StepDone():
                self._perform(core.step_done(message))
            case Submit():
                self._know(request.sender)
                self._perform(core.submit(message.sequences, request.sender, self.ctx.now()))
            case Stop():
                self._perform(core.stop(message))
            case Abort():
                self._perform(core.abort(message.ids, everything=message.all))
            case Tick():
                self._cancel_timer()
                unsent, self._unsent = self._unsent, []
                self._perform([*unsent, *core.tick(self.ctx.now())])
            case ResetDone():
                self._perform(core.quieted(message))
            case NeedFull():
                self._perform(core.batch_lost(message.epoch))
            case Up():
                self._up(message.address)
            case Down():
                self._down(message)
            case DescribeModel():
                return self._describe()
            case Configure():
                return self._configure(message)
            case FlushCache():
                return self._flush(request)
            case Drain():
                self._drain(request)
            case _:
                raise ProtocolError(f"the scheduler does not take {type(message).__name__}")
        return None

    def statistics(self) -> dict[str, float]:
        """Requests by state, and totals since the start."""
        core = self.core
        return {
            "num_running_reqs": len(core.batch.running),
            "num_queue_reqs": len(core.waiting),
            "steps_in_flight": len(core.batch.in_flight),
            "ready": core.links.ready,
            "draining": core.lifecycle.draining,
            "step_seconds_total": core.steps.seconds,
            "order_seconds_total": core.rounds.order_seconds,
            "expected_output_tokens": core.estimate.expect(0),
            "chunk_tokens": core.steps.budget.tokens(decoding=True),
            "most_overtaken_tokens": core.queue.most_overtaken,
            **{f"{name}_total": count for name, count in core.counters.items()},
        }

    # -- a successor --------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let what is under way end, and give all pages back."""
        self._rest = asyncio.Event()
        self._perform(self.core.pause())
        await self._rest.wait()
        self._perform(self.core.withdraw())

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        state = msgspec.structs.replace(
            self.core.state(self.ctx.now()),
            worker=self._worker,
            cache=self._cache,
            unsent=[Unsent(report.owner, report.progress.updates) for report in self._unsent],
        )
        return Snapshot.of(LAYOUT, state, drains=list(self._drains), flushes=list(self._flushes))

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on where another left off."""
        state = snapshot.read(LAYOUT, SchedulerState)
        self._worker, self._cache = state.worker, state.cache
        self._unsent = [Report(one.owner, Progress(one.updates)) for one in state.unsent]
        self._drains = list(snapshot.handles.get("drains", ()))
        self._flushes = list(snapshot.handles.get("flushes", ()))
        effects = self.core.take(state, self.ctx.now())
        await self.start()
        for owner in [*(one.owner for one in state.requests), *(one.owner for one in state.unsent)]:
            if owner is not None:
                self._know(owner)
        self._perform(effects)

    def resume(self) -> None:
        """Nobody has taken over."""
        self._rest = None
        self._perform(self.core.proceed())

    async def leave(self) -> None:
        """A successor asks and answers from here on."""
        self._cancel_timer()
        for task in self._tasks:
            task.cancel()

    # -- events -------------------------------------------------------------------------------------------

    def _up(self, address: Address) -> None:
        if address.name == self.ctx.peer(WORKER) and address != self._worker:
            self._worker = address
            self._perform(self.core.worker_up())
        elif address.name == self.ctx.peer(CACHE) and address != self._cache:
            if self._cache is not None:
                self._perform(self.core.cache_down())
            self._cache = address
            self._perform(self.core.cache_up())

    def _down(self, message: Down) -> None:
        address = message.address
        if address == self._worker:
            self._worker = None
            self._perform(self.core.worker_down(crashed=message.reason != ORDERED_DOWN))
        elif address == self._cache:
            self._cache = None
            self._perform(self.core.cache_down())
        elif address in self._owners:
            self._owners.discard(address)
            self._unsent = [report for report in self._unsent if report.owner != address]
            self._perform(self.core.owner_down(address, self.ctx.now()))

    def _refuse(self, message: Message, request: Request, why: str) -> None:
        self.core.counters["refused_messages"] += 1
        self.log.debug("message refused", kind=type(message).__name__, sender=str(request.sender), why=why)

    def _know(self, owner: Address) -> None:
        if owner not in self._owners:
            self._owners.add(owner)
            self.ctx.monitor(owner)

    def _describe(self) -> ModelInfo:
        info = self.core.links.info
        if info is None:
            raise NotReady("no worker is up")
        return info

    def _configure(self, message: Configure) -> Configuration:
        self._perform(self.core.configure(message))
        configuration = self.core.configuration()
        self.log.info("configured", **msgspec.structs.asdict(configuration))
        return configuration

    def _flush(self, request: Request) -> Flushed | None:
        if self.core.busy:
            return Flushed(done=False, busy=self.core.busy)
        if self._cache is None:
            raise NotReady("no cache is up")
        self._flushes.append(request)
        self._begin_flushes()
        return None

    def _begin_flushes(self) -> None:
        """Flush once the last ended request has given its pages back, at most one step after its end."""
        if self._flushes and self.core.settled and self._cache is not None and self._rest is None:
            flushes, self._flushes = self._flushes, []
            for request in flushes:
                self._flushing += 1
                self._task(self._flush_cache(self._cache, request), name="flush")

    async def _flush_cache(self, cache: Address, request: Request) -> None:
        try:
            await self.ctx.call(cache, Flush(), Pool, timeout=CACHE_TIMEOUT, control=True)
        except SglActorsError as error:
            request.fail(error)
        else:
            request.reply(Flushed(done=True))
        self._flushing -= 1
        self._note_rest()

    def _drain(self, request: Request) -> None:
        """Refuse new requests for good, also when this asker gives up before the last one has ended."""
        self.core.drain()
        self._drains.append(request)
        self._answer_drains()

    def _answer_drains(self) -> None:
        if self._drains and not self.core.busy:
            drains, self._drains = self._drains, []
            for request in drains:
                request.reply(Drained())

    # -- effects ------------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToWorker(message):
                    self._to_worker(message)
                case ToCache(message):
                    self._to_cache(message)
                case Report():
                    self._report(effect)
                case Note():
                    self._log(effect)
        self._answer_drains()
        self._begin_flushes()
        self._note_rest()
        self._set_timer()

    def _note_rest(self) -> None:
        if self._rest is not None and self.core.rested and not self._flushing:
            self._rest.set()

    def _task(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run beside the messages, until a successor takes over."""
        task = self.ctx.task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _to_worker(self, message: Message) -> None:
        worker = self._worker
        assert worker is not None, "the core speaks to a worker that is up"
        if isinstance(message, Describe):
            self._task(self._describe_worker(worker), name="describe worker")
            return
        try:
            self.ctx.cast(worker, message, control=True)
        except Overloaded as error:
            self.log.warning("worker takes no mail", error=error.message)

    async def _describe_worker(self, worker: Address) -> None:
        """Ask until there is an answer or that worker is gone."""
        while worker == self._worker:
            try:
                info = await self.ctx.call(
                    worker, Describe(), ModelInfo, timeout=WORKER_TIMEOUT, control=True
                )
            except ActorDown:
                return
            except SglActorsError as error:
                self.log.warning("worker does not say what it serves", error=error.message)
                await asyncio.sleep(RETRY)
            else:
                if worker == self._worker:
                    self._perform(self.core.described(info))
                return

    def _to_cache(self, message: Commit | Match | Grant | ResetCache) -> None:
        cache = self._cache
        assert cache is not None, "the core speaks to a cache that is up"
        if isinstance(message, Grant | Match):
            self._task(self._ask(cache, message, self.core.links.epoch), name="ask cache")
        elif isinstance(message, ResetCache):
            self._task(self._reset_cache(cache, message), name="reset cache")
        else:
            self._commit(cache, message)

    def _commit(self, cache: Address, message: Commit) -> None:
        try:
            self.ctx.cast(cache, message, control=True)
        except Overloaded as error:
            self.log.warning("cache takes no mail", entries=len(message.entries), error=error.message)
            self.core.uncommitted(message, self.ctx.now())

    async def _reset_cache(self, cache: Address, message: ResetCache) -> None:
        while cache == self._cache and message.epoch == self.core.links.epoch:
            try:
                pool = await self.ctx.call(cache, message, Pool, timeout=CACHE_TIMEOUT, control=True)
            except ActorDown:
                return
            except SglActorsError as error:
                self.log.warning("cache is not emptied", error=error.message)
                await asyncio.sleep(RETRY)
            else:
                self._perform(self.core.emptied(pool))
                return

    async def _ask(self, cache: Address, question: Grant | Match, epoch: int) -> None:
        try:
            if isinstance(question, Grant):
                granted = await self.ctx.call(cache, question, Granted, timeout=CACHE_TIMEOUT, control=True)
                effects = self.core.granted(epoch, granted)
            else:
                matched = await self.ctx.call(cache, question, Matched, timeout=CACHE_TIMEOUT, control=True)
                effects = self.core.matched(epoch, matched)
        except InvalidRequest as error:
            self.log.warning("cache refused", error=error.message)
            effects = self.core.grant_refused(epoch)
        except SglActorsError as error:
            self.log.warning("cache did not answer", error=error.message)
            effects = self.core.grant_failed(epoch, self.ctx.now())
        self._perform(effects)

    def _report(self, report: Report) -> None:
        """Tell a submitter. If it takes no mail, ends are told later; it notices by itself that tokens are missing."""
        try:
            self.ctx.cast(report.owner, report.progress, control=True)
        except Overloaded as error:
            self.log.warning("submitter takes no mail", owner=str(report.owner), error=error.message)
            ends = [update for update in report.progress.updates if update.finish is not None]
            if ends and report.owner in self._owners:
                self._unsent.append(Report(report.owner, Progress(ends)))

    def _log(self, note: Note) -> None:
        bound = {"request": note.request, "program": note.program, "trace": note.trace}
        self.log.info(note.event, **{key: value for key, value in bound.items() if value}, **note.fields)

    def _set_timer(self) -> None:
        """One timer, for the earliest time that the core waits for."""
        self.core.watch(self.ctx.now())
        due = self.core.wakeup()
        if self._unsent:
            again = self.ctx.now() + RETRY
            due = again if due is None else min(due, again)
        if self._timer is not None:
            if due is not None and self._timer[0] <= due:
                return
            self._cancel_timer()
        if due is not None:
            self._timer = (due, self.ctx.after(max(0.0, due - self.ctx.now()), Tick()))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer[1]()
            self._timer = None
