"""The worker: owns the weights, the KV pool and the batch of one device.

In: `Describe` and `Profile` (calls), `Prepare` (call from the grammar actor), `Step` and `Reset` (casts from the scheduler). Out: `StepDone`, `NeedFull` and
`ResetDone`, cast to whoever sent the message they answer, on the control lane: answers of all kinds arrive in the order of what they answer.
For its first constraint it asks the tokenizer for the vocabulary (`DescribeVocabulary`), and for one that only its predecessor was told the grammar
actor (`Compile`).

Steps run one after the other in a thread of their own, in which torch lets go of the interpreter, so that the actor's loop keeps
answering. Steps and resets wait in one short queue: a `ResetDone` therefore follows everything that ran before it. Steps that still wait
when a `Reset` arrives are skipped. When the worker crashes, weights and KV are gone: its successor loads anew, holds batch epoch 0 and
answers `NeedFull` to every step until it is reset.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
import psutil

from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.grammar.messages import Compile, Compiled
from sgl_actors.actors.microkernel import Actor, Address, Context, Message, Request
from sgl_actors.actors.tokenizer.messages import DescribeVocabulary, VocabularyInfo
from sgl_actors.actors.worker.batch import StaleBatchError
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


@dataclass(frozen=True)
class _Job:
    """A step or reset, and who is to hear of it."""

    message: Step | Reset
    sender: Address
    received: float = 0.0


class WorkerActor(Actor):
    """See the module."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(QUEUE)
        self._resets = 0
        self._runner: ModelRunner | None = None
        self._info: ModelInfo | None = None
        self._loaded = (0, 0)
        self._learning = asyncio.Lock()
        self._claiming: threading.Thread | None = None
        self._stopping = False

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
        self._runner, self._info = runner, info
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
        self.ctx.task(self._work(runner), name="steps")
        if cache.claim:
            self._claiming = threading.Thread(target=self._claim, args=(runner,), name="claim", daemon=True)
            self._claiming.start()

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See the module."""
        match message:
            case Step():
                await self._jobs.put(_Job(message, request.sender, self.ctx.now()))
            case Reset():
                self._resets += 1
                await self._jobs.put(_Job(message, request.sender))
            case Describe():
                assert self._info is not None
                return self._info
            case Profile():
                self.ctx.task(self._profile(message, request), name="profile")
            case Prepare():
                self.ctx.task(self._prepare(message, request), name="prepare")
            case _:
                raise InvalidRequest(f"the worker does not take {message.TAG}")
        return None

    def _claim(self, runner: ModelRunner) -> None:
        give_way(MOST_NICE)
        runner.pool.claim(lambda: not self._stopping and psutil.virtual_memory().available > SPARED)

    async def stop(self) -> None:
        """Wait for the pass that is running, at most one."""
        self._stopping = True
        if self._claiming is not None:
            await asyncio.to_thread(self._claiming.join)
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    def statistics(self) -> dict[str, float]:
        """What the runner counted since it started, and what is waiting."""
        if self._runner is None:
            return {"load_bytes_done": float(self._loaded[0]), "load_bytes_total": float(self._loaded[1])}
        counters = self._runner.counters
        return {
            "steps_total": float(counters.steps),
            "forward_tokens_total": float(counters.tokens),
            "prefill_tokens_total": float(counters.prefill_tokens),
            "sampled_tokens_total": float(counters.sampled),
            "drafted_tokens_total": float(counters.drafted),
            "accepted_tokens_total": float(counters.accepted),
            "failed_sequences_total": float(counters.failed),
            "forward_seconds_total": counters.seconds,
            "sequences": float(len(self._runner.batch.sequences)),
            "steps_waiting": float(self._jobs.qsize()),
        }

    async def _work(self, runner: ModelRunner) -> None:
        """Take jobs in order for as long as the actor lives."""
        while True:
            job = await self._jobs.get()
            if isinstance(job.message, Reset):
                self._resets -= 1
                runner.reset(job.message.epoch)
                self.log.info("batch reset", batch_epoch=job.message.epoch)
                self.ctx.cast(job.sender, ResetDone(job.message.epoch), control=True)
            elif not self._resets:
                await self._step(runner, job.message, job.sender)
                runner.profiler.delivered(job.message.number, job.received, self.ctx.now())

    async def _step(self, runner: ModelRunner, step: Step, sender: Address) -> None:
        until = self.ctx.now() + PATIENCE
        for constraint in {new.sampling.constraint for new in step.start}:
            if constraint is not None and not runner.grammars.knows(constraint):
                await self._recall(runner, constraint, until)
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, runner.execute, step)
        except StaleBatchError as error:
            self.log.warning("step of another batch", why=str(error))
            self.ctx.cast(sender, NeedFull(step.epoch), control=True)
            return
        for result in done.results:
            if result.error:
                self.log.warning("sequence failed", seq=result.seq, why=result.error)
        self.ctx.cast(sender, done, control=True)

    async def _profile(self, message: Profile, request: Request) -> None:
        """Begin and end between two steps, in their thread."""
        runner, loop = self._runner, asyncio.get_running_loop()
        assert runner is not None
        assert self._info is not None
        threads = self._info.threads
        try:
            await loop.run_in_executor(self._thread, lambda: runner.begin_profile(slices=message.slices))
            await asyncio.sleep(message.seconds)
            request.reply(await loop.run_in_executor(self._thread, runner.end_profile, threads))
        except Overloaded as error:
            request.fail(error)

    async def _prepare(self, message: Prepare, request: Request) -> None:
        """Load a constraint; whatever goes wrong with it, the worker lives on."""
        assert self._runner is not None
        try:
            await self._load(self._runner, message.constraint, message.automaton, self.ctx.now() + PATIENCE)
        except Exception as error:  # noqa: BLE001 - it goes to the asker
            self.log.warning("constraint not loaded", kind=message.constraint.kind, error=repr(error)[:500])
            request.fail(error)
        else:
            request.reply(Prepared())

    async def _recall(self, runner: ModelRunner, constraint: Constraint, until: float) -> None:
        """Have the grammar actor say again what it told our predecessor; without an answer the step fails the sequence."""
        try:
            compiled = await self._ask("grammar", Compile(constraint, prepare=False), Compiled, until)
            await self._load(runner, constraint, compiled.automaton, until)
        except Exception as error:  # noqa: BLE001 - the sequence's error, not the worker's
            self.log.warning("constraint not known", kind=constraint.kind, error=repr(error)[:500])

    async def _load(
        self, runner: ModelRunner, constraint: Constraint, automaton: bytes, until: float
    ) -> None:
        """Make it known, in a thread beside the one of the steps; the first one needs the vocabulary."""
        async with self._learning:
            if not runner.grammars.ready:
                await self._learn_vocabulary(runner, until)
        if not runner.grammars.knows(constraint):
            await asyncio.to_thread(runner.grammars.prepare, constraint, automaton)

    async def _learn_vocabulary(self, runner: ModelRunner, until: float) -> None:
        assert self._info is not None
        info = await self._ask("tokenizer", DescribeVocabulary(), VocabularyInfo, until)
        rows = max(self._info.vocabulary, info.size)

        def set_up() -> None:
            from sgl_actors.lang.constraints.engines import Engines

            runner.grammars.set_up(Engines(info.tokenizer, info.eos_ids, rows))

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


def _load(model: Options, cache: CacheOptions, progress: _ProgressLog) -> tuple[ModelRunner, ModelInfo]:
    """Import torch and load the model, in the thread that will compute.

    OpenMP's threads are told to spin only briefly while they wait for each other, which has to be said before torch is imported. With
    its default a step takes twenty times as long as soon as other processes want the cores (docs/design/0003).
    """
    give_way(model.nice)
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    from sgl_actors.actors.worker.device import load_runner

    return load_runner(model, cache, progress=progress)
