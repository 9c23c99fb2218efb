"""The grammar actor: it has constraints compiled before their requests are admitted, so that a bad one is its asker's error and harms nobody else.

Owns: the results that are kept, and the process that compiles (`compiler`), which is started for the first constraint, killed where one goes
over its limits, and replaced after some hundreds. In: `Compile`, from the tokenizer for each constrained request and from the worker after a
restart. Out: `DescribeVocabulary` to the tokenizer, once; `Prepare` to the worker, once for each of its incarnations and constraint.
When it crashes: what it kept is compiled anew when it is asked for again, and offenders have their two tries again. Requests that wait for it
ask its successor.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from functools import partial
from typing import ClassVar

import msgspec

from sgl_actors.actors.grammar.core import Compilations, Outcome
from sgl_actors.actors.grammar.messages import Compile, Compiled, Options
from sgl_actors.actors.grammar.process import MODULE, CompilerCrashed, CompilerProcess
from sgl_actors.actors.grammar.protocol import SetUp
from sgl_actors.actors.microkernel import Actor, Address, Context, Down, MailboxSpec, Message, Request, Up
from sgl_actors.actors.microkernel.process import resident_bytes
from sgl_actors.actors.tokenizer.messages import DescribeVocabulary, VocabularyInfo
from sgl_actors.actors.worker.messages import Prepare, Prepared
from sgl_actors.errors import ActorDown, InvalidRequest, NotReady, SglActorsError
from sgl_actors.lang.constraints.constraint import Constraint

PATIENCE = 10.0
"""Seconds for the tokenizer to come up, and for the worker to say that it is prepared."""
RETRY = 0.1
"""Seconds between two questions to a tokenizer that is down."""
RECYCLED = 500
"""Jobs after which the process is replaced, so that what it keeps or leaks stays bounded."""
TOLD = 128
"""Constraints that the worker was told last; it keeps more than that."""
WORKER = "worker/0"


class GrammarActor(Actor):
    """See the module."""

    mailbox: ClassVar[MailboxSpec] = MailboxSpec(capacity=8192)
    """What the tokenizer lets in; how many constraints wait is bounded by `[grammar] queue`."""
    compiler: ClassVar[str] = MODULE

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options = msgspec.convert(context.config.get("grammar", {}), Options)
        self._compilations: Compilations[tuple[Request, bool]] = Compilations(
            self._options.kept, self._options.queue
        )
        self._asked = asyncio.Event()
        self._process: CompilerProcess | None = None
        self._vocabulary: VocabularyInfo | None = None
        self._worker: Address | None = None
        self._told: OrderedDict[Constraint, None] = OrderedDict()
        self._preparing: dict[Constraint, list[Request]] = {}
        self._count: Counter[str] = Counter()
        self._seconds = 0.0

    async def start(self) -> None:
        """Wait for constraints; nothing of the compiler is loaded before the first."""
        self.ctx.watch(WORKER)
        self.ctx.task(self._work(), name="compile")

    async def stop(self) -> None:
        """End the process."""
        await self._close()

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See the module."""
        match message:
            case Compile():
                self._compile(message, request)
            case Up():
                self._worker = message.address
                self._told.clear()
            case Down():
                if message.address == self._worker:
                    self._worker = None
                    self._told.clear()
            case _:
                return await super().receive(message, request)
        return None

    def statistics(self) -> dict[str, float]:
        """What was asked and what came of it, what waits, and the process."""
        compilations = self._compilations
        return {
            "grammars_waiting": float(compilations.waiting),
            "grammars_kept": float(compilations.kept),
            "grammars_kept_bytes": float(compilations.kept_bytes),
            "grammar_compiler_bytes": float(resident_bytes(self._process.pid)) if self._process else 0.0,
            "grammar_compile_seconds_total": self._seconds,
            **{
                f"grammars_{name}_total": float(count)
                for name, count in (compilations.counters + self._count).items()
            },
        }

    # Askers.

    def _compile(self, message: Compile, request: Request) -> None:
        waiter = (request, message.prepare)
        outcome = self._compilations.ask(message.constraint, waiter)
        if outcome is not None:
            self._deliver(message.constraint, outcome, [waiter])
            return
        request.on_cancel(partial(self._compilations.forget, message.constraint, waiter))
        self._asked.set()

    def _deliver(
        self, constraint: Constraint, outcome: Outcome | SglActorsError, waiters: list[tuple[Request, bool]]
    ) -> None:
        """Answer, where it is wanted after the worker has been told."""
        later: list[Request] = []
        for request, prepare in waiters:
            if isinstance(outcome, SglActorsError):
                request.fail(outcome)
            elif not prepare:
                request.reply(outcome)
            elif self._worker is None or constraint in self._told:
                request.reply(msgspec.structs.replace(outcome, automaton=b""))
            else:
                later.append(request)
        if constraint in self._told:
            self._told.move_to_end(constraint)
        if not later or isinstance(outcome, SglActorsError):
            return
        if constraint in self._preparing:
            self._preparing[constraint] += later
            return
        self._preparing[constraint] = later
        self.ctx.task(self._prepare(constraint, outcome), name="prepare")

    async def _prepare(self, constraint: Constraint, compiled: Compiled) -> None:
        """Tell the worker, then answer those who wait; one that is down or slow asks for itself when the step comes."""
        problem: InvalidRequest | None = None
        worker = self._worker
        try:
            if worker is not None:
                await self.ctx.call(
                    worker, Prepare(constraint, compiled.automaton), Prepared, timeout=PATIENCE, control=True
                )
        except InvalidRequest as error:
            problem = error
        except SglActorsError as error:
            self._count["unprepared"] += 1
            self.log.warning("worker not prepared", kind=constraint.kind, error=error.message)
        else:
            if worker is not None and worker == self._worker:
                self._told[constraint] = None
                if len(self._told) > TOLD:
                    self._told.popitem(last=False)
        for request in self._preparing.pop(constraint):
            if problem is None:
                request.reply(msgspec.structs.replace(compiled, automaton=b""))
            else:
                request.fail(problem)

    # The process.

    async def _work(self) -> None:
        """Have one constraint compiled after the other, for as long as the actor lives."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            while (constraint := self._compilations.begin()) is not None:
                await self._run(constraint)

    async def _run(self, constraint: Constraint) -> None:
        about = {"kind": constraint.kind, "characters": len(constraint.source)}
        outcome: Outcome | SglActorsError
        try:
            outcome = await self._ask_compiler(constraint)
        except CompilerCrashed as crash:
            await self._close()
            self.log.warning("compilation ended the compiler", why=str(crash), details=crash.details, **about)
            outcome = InvalidRequest(
                f"{constraint.kind}: compiling it {crash}; make it smaller", param=constraint.kind
            )
            waiters = self._compilations.crash()
        except InvalidRequest as error:
            outcome = error
            waiters = self._compilations.end(error)
        except SglActorsError as error:
            self.log.warning("constraint not compiled", error=error.message, **about)
            outcome = error
            waiters = self._compilations.end(None)
        else:
            seconds, size = round(outcome.seconds, 4), len(outcome.automaton)
            self._seconds += outcome.seconds
            self.log.info(
                "compiled", engine=outcome.engine, why=outcome.why, seconds=seconds, bytes=size, **about
            )
            waiters = self._compilations.end(outcome)
        self._deliver(constraint, outcome, waiters)

    async def _ask_compiler(self, constraint: Constraint) -> Compiled:
        """Start the process if need be. Raises `InvalidRequest`, `CompilerCrashed`, and `NotReady` if it could not be tried."""
        process = self._process
        if process is not None and (process.jobs >= RECYCLED or not process.alive):
            await self._close()
        if self._process is None:
            known = await self._learn_vocabulary()
            options = self._options
            set_up = SetUp(
                known.tokenizer, known.eos_ids, known.size, options.engine, options.memory, options.nice
            )
            self._process = await CompilerProcess.start(set_up, self.compiler)
            self._count["compilers"] += 1
        result = await self._process.compile(constraint, self._options.seconds)
        return Compiled(result.engine, result.automaton, result.why, result.seconds)

    async def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.close()

    async def _learn_vocabulary(self) -> VocabularyInfo:
        until = self.ctx.now() + PATIENCE
        while self._vocabulary is None:
            try:
                self._vocabulary = await self.ctx.call("tokenizer", DescribeVocabulary(), VocabularyInfo)
            except ActorDown:
                if self.ctx.now() > until:
                    raise NotReady("the vocabulary is not known: the tokenizer is down") from None
                await asyncio.sleep(RETRY)
        return self._vocabulary
