"""The worker: owns the weights, the KV pool and the batch of one device.

In: `Describe` and `Profile` (calls), `Prepare` (call from the grammar actor), `Step` and `Reset` (casts from the scheduler). Out: `StepDone`, `NeedFull` and
`ResetDone`, cast to whoever sent the message they answer, on the control lane: answers of all kinds arrive in the order of what they answer.
For its first constraint it asks the tokenizer for the vocabulary (`DescribeVocabulary`), and for one that only its predecessor was told the grammar
actor (`Compile`).

Steps run one after the other in a thread of their own, in which torch lets go of the interpreter, so that the actor's loop keeps
answering. Steps and resets wait in one short queue: a `ResetDone` therefore follows everything that ran before it. Steps that still wait
when a `Reset` arrives are skipped; a step for which there is no place is answered by `NeedFull`. When the worker crashes, weights and KV are gone: its
successor loads anew, holds batch epoch 0 and answers `NeedFull` to every step until it is reset. A class that is swapped in gets what `handover` says and
runs the steps that wait; a constraint that is being read and a profile that is being taken are finished by who began them.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import msgspec
import psutil

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.grammar.messages import Compile, Compiled
from sgl_actors.actors.microkernel import Actor, Address, Context, Message, Request, Snapshot
from sgl_actors.actors.tokenizer.messages import DescribeVocabulary, VocabularyInfo
from sgl_actors.actors.worker.batch import StaleBatchError
from sgl_actors.actors.worker.handover import LAYOUT, Claim, Engine, Waiting, WorkerState
from sgl_actors.actors.worker.messages import (
    Describe,
    ModelInfo,
    NeedFull,
    Options,
    Prepare,
    Prepared,
    Profile,
    Reset,
    ResetDone,
    Step,
)
from sgl_actors.actors.worker.threads import MOST_NICE, give_way
from sgl_actors.errors import InvalidRequest, Overloaded, SglActorsError
from sgl_actors.lang.constraints.constraint import Constraint

if TYPE_CHECKING:
    from sgl_actors.actors.worker.runner import ModelRunner

M = TypeVar("M", bound=Message)
T = TypeVar("T")

SPIN_COUNT = "3000"
"""Iterations that a waiting OpenMP thread spins before it sleeps (libgomp's GOMP_SPINCOUNT)."""
QUEUE = 64
"""Steps and resets waiting; the sender runs at most a few ahead."""
PATIENCE = 10.0
"""Seconds that steps wait for the tokenizer and the grammar actor; after that constrained sequences fail, and the next one asks again."""
RETRY = 0.1
"""Seconds between two questions to one of them that is down."""
SPARED = 1 << 30
"""Bytes of the machine's memory that claiming the KV pool ahead of its use leaves to others."""
PROGRESS = 0.25
"""Share of the weights between two lines of progress in the log."""


class WorkerActor(Actor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._engine: Engine | None = None
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._present: Waiting | None = None
        self._computing = self._settling = False
        self._steps: asyncio.Task[None] | None = None
        self._loaded = (0, 0)
        self._count: Counter[str] = Counter()

    def loading(self, done: int, total: int) -> None:
        """Note how many bytes of the weights have been read; called from the loading thread."""
        self._loaded = (done, total)

    async def start(self) -> None:
        """Load the model, then take steps."""
        model = msgspec.convert(self.ctx.config["model"], Options)
        cache = msgspec.convert(self.ctx.config["cache"], CacheOptions)
        loop = asyncio.get_running_loop()
        progress = _ProgressLog(self, loop)
        began = self.ctx.now()
        runner, info = await loop.run_in_executor(self._thread, lambda: _load(model, cache, progress))
        engine = Engine(runner, self._thread, info, model, cache)
        self.log.info(
            "model loaded",
            path=info.path,
            architecture=info.architecture,
            seconds=round(self.ctx.now() - began, 2),
            compute=info.compute,
            kernels=info.kernels,
            dtype=info.dtype,
            device=info.device,
            threads=info.threads,
            context=info.context,
            pages=info.pages,
            page_size=info.page_size,
            kv_bytes=info.pages * info.page_size * info.bytes_per_token,
        )
        if info.kernels == "torch" and model.dtype in ("auto", "float32"):
            self.log.warning(
                "the native kernels are not built (install where a C++20 compiler is at hand) or switched off: torch's are several times slower"
            )
        if cache.claim:
            engine.claim = Claim(lambda goes_on: _claim(runner, goes_on))
        self._begin(engine)

    def _begin(self, engine: Engine) -> None:
        """Take steps from here on."""
        self._engine = engine
        self._steps = self.ctx.task(self._work(engine), name="steps")

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See the module."""
        if (request.kind == "cast") != isinstance(message, Step | Reset):
            self._refuse(message, request)
            return None
        engine = self._engine
        assert engine is not None
        match message:
            case Step():
                self._take_step(message, request.sender)
            case Reset():
                self._take_reset(message, request.sender)
            case Describe():
                return engine.info
            case Profile():
                self.ctx.task(self._profile(engine, message, request), name="profile")
            case Prepare():
                self.ctx.task(self._prepare(engine, message, request), name="prepare")
            case _:
                self._refuse(message, request)
        return None

    def _refuse(self, message: Message, request: Request) -> None:
        """Whoever asks hears of it; a cast that makes no sense is counted, as it may not end the worker."""
        if request.kind != "cast":
            raise InvalidRequest(f"the worker does not take {message.TAG} as a {request.kind}")
        self._count["unexpected"] += 1
        self.log.warning("unexpected message", message=message.TAG, sender=str(request.sender))

    def _take_step(self, step: Step, sender: Address) -> None:
        if len(self._waiting) >= QUEUE:
            self._count["unexpected"] += 1
            self.ctx.cast(sender, NeedFull(step.epoch), control=True)
            return
        self._waiting.append(Waiting(sender, step, received=self.ctx.now()))
        self._arrived.set()

    def _take_reset(self, reset: Reset, sender: Address) -> None:
        """Steps before it are skipped, and of more resets than have a place the oldest."""
        resets = [one for one in self._waiting if one.reset is not None]
        self._waiting = deque([*resets[-QUEUE + 1 :], Waiting(sender, reset=reset)])
        self._arrived.set()

    async def stop(self) -> None:
        """Wait for the pass that is running, at most one."""
        if self._engine is not None and self._engine.claim is not None:
            await asyncio.to_thread(self._engine.claim.end)
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    # -- swap ---------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Begin no step any more, and wait for the one that is computed; one that waits for its constraint goes back into the queue."""
        assert self._steps is not None
        self._settling = True
        if not self._computing:
            self._steps.cancel()
        await asyncio.wait([self._steps])
        if self._present is not None and not any(one.reset for one in self._waiting):
            self._waiting.appendleft(self._present)
        self._present = None

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        engine = self._engine
        assert engine is not None
        batch = engine.runner.batch
        counters = {name: value for name, value in self.statistics().items() if name.endswith("_total")}
        state = WorkerState(engine.info, batch.epoch, batch.next_number, counters, list(self._waiting))
        return Snapshot.of(LAYOUT, state, engine=engine)

    async def restore(self, snapshot: Snapshot) -> None:
        """Take the engine as it is; `SwapFailed` if the configuration asks for another one."""
        state = snapshot.read(LAYOUT, WorkerState)
        engine: Engine = snapshot.handle("engine", Engine)
        model = msgspec.convert(self.ctx.config["model"], Options)
        engine.check(model, msgspec.convert(self.ctx.config["cache"], CacheOptions))
        self._thread = engine.thread
        self._waiting.extend(state.waiting)
        self._count["unexpected"] = int(state.counters.get("unexpected_messages_total", 0))
        self._begin(engine)

    def resume(self) -> None:
        """Take steps again; a pass that was waited for in vain goes on in the task it is in."""
        assert self._engine is not None
        assert self._steps is not None
        self._settling = False
        if self._steps.done() or self._steps.cancelling():
            self._begin(self._engine)

    def statistics(self) -> dict[str, float]:
        """What the runner counted since it started, and what is waiting."""
        if self._engine is None:
            return {"load_bytes_done": float(self._loaded[0]), "load_bytes_total": float(self._loaded[1])}
        counters = self._engine.runner.counters
        return {
            "steps_total": float(counters.steps),
            "forward_tokens_total": float(counters.tokens),
            "prefill_tokens_total": float(counters.prefill_tokens),
            "sampled_tokens_total": float(counters.sampled),
            "drafted_tokens_total": float(counters.drafted),
            "accepted_tokens_total": float(counters.accepted),
            "failed_sequences_total": float(counters.failed),
            "forward_seconds_total": counters.seconds,
            "unexpected_messages_total": float(self._count["unexpected"]),
            "sequences": float(len(self._engine.runner.batch.sequences)),
            "steps_waiting": float(len(self._waiting)),
        }

    async def _work(self, engine: Engine) -> None:
        """Take jobs in order for as long as the actor lives, or until it settles."""
        while not self._settling:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            self._present = job = self._waiting.popleft()
            if job.reset is not None:
                engine.runner.reset(job.reset.epoch)
                self.log.info("batch reset", batch_epoch=job.reset.epoch)
                self.ctx.cast(job.sender, ResetDone(job.reset.epoch), control=True)
            elif job.step is not None:
                await self._step(engine, job.step, job.sender)
                engine.runner.profiler.delivered(job.step.number, job.received, self.ctx.now())
            self._present = None

    async def _step(self, engine: Engine, step: Step, sender: Address) -> None:
        until = self.ctx.now() + PATIENCE
        for constraint in {new.sampling.constraint for new in step.start}:
            if constraint is not None and not engine.runner.grammars.knows(constraint):
                await self._recall(engine, constraint, until)
        self._computing = True
        try:
            done = await self._in_thread(lambda: engine.runner.execute(step))
        except StaleBatchError as error:
            self.log.warning("step of another batch", why=str(error))
            self.ctx.cast(sender, NeedFull(step.epoch), control=True)
            return
        finally:
            self._computing = False
        for result in done.results:
            if result.error:
                self.log.warning("sequence failed", seq=result.seq, why=result.error)
        self.ctx.cast(sender, done, control=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _profile(self, engine: Engine, message: Profile, request: Request) -> None:
        """Begin and end between two steps, in their thread."""
        runner, threads = engine.runner, engine.info.threads
        try:
            await self._in_thread(lambda: runner.begin_profile(slices=message.slices))
            await asyncio.sleep(message.seconds)
            request.reply(await self._in_thread(lambda: runner.end_profile(threads)))
        except Overloaded as error:
            request.fail(error)

    async def _prepare(self, engine: Engine, message: Prepare, request: Request) -> None:
        """Load a constraint; whatever goes wrong with it, the worker lives on."""
        try:
            await self._load(engine, message.constraint, message.automaton, self.ctx.now() + PATIENCE)
        except Exception as error:  # noqa: BLE001 - it goes to the asker
            self.log.warning("constraint not loaded", kind=message.constraint.kind, error=repr(error)[:500])
            request.fail(error)
        else:
            request.reply(Prepared())

    async def _recall(self, engine: Engine, constraint: Constraint, until: float) -> None:
        """Have the grammar actor say again what it told our predecessor; without an answer the step fails the sequence."""
        try:
            compiled = await self._ask(
                self.ctx.peer("grammar"), Compile(constraint, prepare=False), Compiled, until
            )
            await self._load(engine, constraint, compiled.automaton, until)
        except Exception as error:  # noqa: BLE001 - the sequence's error, not the worker's
            self.log.warning("constraint not known", kind=constraint.kind, error=repr(error)[:500])

    async def _load(self, engine: Engine, constraint: Constraint, automaton: bytes, until: float) -> None:
        """Make it known, in a thread beside the one of the steps; the first one needs the vocabulary."""
        grammars = engine.runner.grammars
        async with engine.learning:
            if not grammars.ready:
                await self._learn_vocabulary(engine, until)
        if not grammars.knows(constraint):
            await asyncio.to_thread(grammars.prepare, constraint, automaton)

    async def _learn_vocabulary(self, engine: Engine, until: float) -> None:
        info = await self._ask(self.ctx.peer("tokenizer"), DescribeVocabulary(), VocabularyInfo, until)
        rows = max(engine.info.vocabulary, info.size)

        def set_up() -> None:
            from sgl_actors.lang.constraints.engines import Engines

            engine.runner.grammars.set_up(Engines(info.tokenizer, info.eos_ids, rows))

        await asyncio.to_thread(set_up)

    async def _ask(self, name: str, question: Message, expect: type[M], until: float) -> M:
        """Ask an actor that may be coming up again. Raises what it raises from `until` on, and at once where asking again is no use."""
        while True:
            left = max(RETRY, until - self.ctx.now())
            try:
                return await self.ctx.call(name, question, expect, timeout=left, control=True)
            except SglActorsError as error:
                if not error.retryable or self.ctx.now() >= until:
                    raise
            await asyncio.sleep(RETRY)


class _ProgressLog:
    """Called from the loading thread; writes a line each time another share of the weights is in."""

    def __init__(self, actor: WorkerActor, loop: asyncio.AbstractEventLoop) -> None:
        self._actor = actor
        self._loop = loop
        self._next = PROGRESS

    def __call__(self, done: int, total: int) -> None:
        self._actor.loading(done, total)
        share = done / total if total else 1.0
        if share >= self._next:
            self._next = share + PROGRESS
            self._loop.call_soon_threadsafe(self._write, done, total)

    def _write(self, done: int, total: int) -> None:
        self._actor.log.info("loading weights", bytes=done, total=total, percent=round(100 * done / total))


def _claim(runner: ModelRunner, goes_on: Callable[[], bool]) -> None:
    """In the claim's thread."""
    give_way(MOST_NICE)
    runner.pool.claim(lambda: goes_on() and psutil.virtual_memory().available > SPARED)


def _load(model: Options, cache: CacheOptions, progress: _ProgressLog) -> tuple[ModelRunner, ModelInfo]:
    """Import torch and load the model, in the thread that will compute.

    OpenMP's threads are told to spin only briefly while they wait for each other, which has to be said before torch is imported. With
    its default a step takes twenty times as long as soon as other processes want the cores (docs/design/0003).
    """
    give_way(model.nice)
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    from sgl_actors.actors.worker.device import load_runner

    return load_runner(model, cache, progress=progress)
