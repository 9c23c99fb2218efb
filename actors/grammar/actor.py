"""The grammar actor: it has constraints compiled before their requests are admitted, so that a bad one is its asker's error and harms nobody else.

Owns: the results that are kept, and the process that compiles (`compiler`), which is started for the first constraint, killed where one goes
over its limits, and replaced after some hundreds. In: `Compile`, from the tokenizer for each constrained request and from the worker after a
restart. Out: `DescribeVocabulary` to the tokenizer, once; `Prepare` to the worker, once for each of its incarnations and constraint.
When it crashes: what it kept is compiled anew when it is asked for again, and offenders have their two tries again. Requests that wait for it
ask its successor. A class that is swapped in gets what `handover` says: the compilation under way goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

import msgspec

from sgl_actors.actors.grammar.core import Compilations, Outcome
from sgl_actors.actors.grammar.handover import LAYOUT, GrammarState, Kept, Preparing, Waiter, Waiting
from sgl_actors.actors.grammar.host import CompilerHost
from sgl_actors.actors.grammar.messages import Compile, Compiled, Options
from sgl_actors.actors.grammar.process import MODULE, CompilerCrashed
from sgl_actors.actors.grammar.protocol import Result, SetUp
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
from sgl_actors.actors.tokenizer.messages import DescribeVocabulary, VocabularyInfo
from sgl_actors.actors.worker.messages import Prepare, Prepared
from sgl_actors.errors import ActorDown, InvalidRequest, NotReady, SglActorsError
from sgl_actors.lang.constraints.constraint import Constraint

PATIENCE = 10.0
"""Seconds for the tokenizer to come up, and for the worker to say that it is prepared."""
RETRY = 0.1
"""Seconds between two questions to a tokenizer that is down."""
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
        self._host = CompilerHost(self.compiler)
        self._job: asyncio.Future[Result] | None = None
        self._vocabulary: VocabularyInfo | None = None
        self._worker: Address | None = None
        self._told: OrderedDict[Constraint, None] = OrderedDict()
        self._preparing: dict[Constraint, tuple[Compiled, list[Request]]] = {}
        self._tasks: dict[Constraint | None, asyncio.Task[None]] = {}
        self._settling = False
        self._count: Counter[str] = Counter()
        self._seconds = 0.0

    async def start(self) -> None:
        """Wait for constraints; nothing of the compiler is loaded before the first."""
        self.ctx.watch(self.ctx.peer(WORKER))
        self._go_on()

    def _go_on(self) -> None:
        """Begin what there is to do, or begin again."""
        self._settling = False
        self._tasks[None] = self.ctx.task(self._work(), name="compile")
        for constraint in self._preparing:
            self._tell(constraint)

    async def stop(self) -> None:
        """End the process."""
        await self._host.close()

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See the module. A cast that makes no sense is counted: nobody waits for an answer to it."""
        match message:
            case Compile() if request.kind == "call":
                self._compile(message, request)
            case Up() if message.address.name == self.ctx.peer(WORKER):
                if message.address != self._worker:
                    self._worker = message.address
                    self._told.clear()
            case Down():
                if message.address == self._worker:
                    self._worker = None
                    self._told.clear()
            case _ if request.kind == "cast":
                self._count["unexpected"] += 1
                self.log.warning("unexpected message", message=message.TAG, sender=str(request.sender))
            case _:
                raise InvalidRequest(f"the grammar actor does not take {message.TAG} as a {request.kind}")
        return None

    # Swap.

    async def settle(self) -> None:
        """Begin no compilation any more, and leave the worker alone. The compilation under way goes on, whoever will hear of it."""
        self._settling = True
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def snapshot(self) -> Snapshot:
        """See `handover`."""
        requests: list[Request] = []

        def waiters(waiting: Iterable[tuple[Request, bool]]) -> list[Waiter]:
            numbered = []
            for request, prepare in waiting:
                numbered.append(Waiter(len(requests), prepare))
                requests.append(request)
            return numbered

        compilations = self._compilations
        state = GrammarState(
            self._options.engine,
            [Waiting(constraint, waiters(waiting)) for constraint, waiting in compilations.line.items()],
            [_keep(constraint, outcome) for constraint, outcome in compilations.results.items()],
            list(compilations.offenders.items()),
            [
                Preparing(constraint, compiled, waiters((request, True) for request in waiting))
                for constraint, (compiled, waiting) in self._preparing.items()
            ],
            self._worker,
            list(self._told),
            dict(self._counters()),
            self._seconds,
        )
        return Snapshot.of(LAYOUT, state, requests=requests, host=self._host, job=self._job)

    async def restore(self, snapshot: Snapshot) -> None:
        """Go on with what waits. Results of another engine are forgotten."""
        state = snapshot.read(LAYOUT, GrammarState)
        requests: Sequence[Request] = snapshot.handle("requests", list)
        self._host = snapshot.handle("host", CompilerHost)
        self._job = snapshot.handles.get("job")
        same = state.engine == self._options.engine
        line = [
            (one.constraint, [(requests[who.request], who.prepare) for who in one.waiters])
            for one in state.waiting
        ]
        kept = [(one.constraint, _outcome(one)) for one in state.kept if same]
        self._compilations.adopt(line, kept, state.offenders)
        self._worker = state.worker
        self._told = OrderedDict.fromkeys(state.told if same else ())
        for constraint, waiting in line:
            for waiter in waiting:
                waiter[0].on_cancel(partial(self._compilations.forget, constraint, waiter))
        for one in state.preparing:
            self._preparing[one.constraint] = one.compiled, [requests[who.request] for who in one.waiters]
        self._count.update(state.counters)
        self._count["compilers"] -= self._host.started
        self._seconds = state.seconds
        self._go_on()

    def resume(self) -> None:
        """Compile again."""
        self._go_on()

    def statistics(self) -> dict[str, float]:
        """What was asked and what came of it, what waits, and the process."""
        compilations = self._compilations
        return {
            "grammars_waiting": float(compilations.waiting),
            "grammars_kept": float(compilations.kept),
            "grammars_kept_bytes": float(compilations.kept_bytes),
            "grammar_compiler_bytes": float(self._host.resident),
            "grammar_compile_seconds_total": self._seconds,
            **{f"grammars_{name}_total": float(count) for name, count in self._counters().items()},
        }

    def _counters(self) -> Counter[str]:
        return self._compilations.counters + self._count + Counter(compilers=self._host.started)

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
            self._preparing[constraint][1].extend(later)
            return
        self._preparing[constraint] = outcome, later
        if not self._settling:
            self._tell(constraint)

    def _tell(self, constraint: Constraint) -> None:
        self._tasks[constraint] = self.ctx.task(self._prepare(constraint), name="prepare")

    async def _prepare(self, constraint: Constraint) -> None:
        """Tell the worker, then answer those who wait; one that is down or slow asks for itself when the step comes."""
        problem: InvalidRequest | None = None
        worker = self._worker
        compiled, waiting = self._preparing[constraint]
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
        del self._preparing[constraint], self._tasks[constraint]
        for request in waiting:
            if problem is None:
                request.reply(msgspec.structs.replace(compiled, automaton=b""))
            else:
                request.fail(problem)

    # The process.

    async def _work(self) -> None:
        """Have one constraint compiled after the other, for as long as the actor lives or until it settles."""
        while True:
            constraint = self._compilations.begin()
            if constraint is not None:
                await self._run(constraint)
            else:
                self._asked.clear()
                await self._asked.wait()

    async def _run(self, constraint: Constraint) -> None:
        about = {"kind": constraint.kind, "characters": len(constraint.source)}
        outcome: Outcome | SglActorsError
        try:
            outcome = await self._ask_compiler(constraint)
        except CompilerCrashed as crash:
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
        """Begin, unless that is being compiled already. Raises `InvalidRequest`, `CompilerCrashed`, and `NotReady` if it could not be tried."""
        while self._job is None or self._job.cancelled():
            known, options = await self._learn_vocabulary(), self._options
            set_up = SetUp(
                known.tokenizer, known.eos_ids, known.size, options.engine, options.memory, options.nice
            )
            self._job = asyncio.get_running_loop().create_future()
            self.ctx.task(
                _fulfil(self._job, self._host, constraint, set_up, options.seconds), name="compiler"
            )
            await asyncio.wait([self._job])
        await asyncio.wait([self._job])
        job, self._job = self._job, None
        result = job.result()
        return Compiled(result.engine, result.automaton, result.why, result.seconds)

    async def _learn_vocabulary(self) -> VocabularyInfo:
        until = self.ctx.now() + PATIENCE
        while self._vocabulary is None:
            try:
                self._vocabulary = await self.ctx.call(
                    self.ctx.peer("tokenizer"), DescribeVocabulary(), VocabularyInfo
                )
            except ActorDown:
                if self.ctx.now() > until:
                    raise NotReady("the vocabulary is not known: the tokenizer is down") from None
                await asyncio.sleep(RETRY)
        return self._vocabulary


async def _fulfil(
    job: asyncio.Future[Result], host: CompilerHost, constraint: Constraint, set_up: SetUp, seconds: float
) -> None:
    """Compile; what comes of it is the job's, which outlives the actor that began it."""
    try:
        result = await host.compile(constraint, set_up, seconds)
    except (CompilerCrashed, SglActorsError) as error:
        job.set_exception(error)
    except BaseException:
        job.cancel()
        raise
    else:
        job.set_result(result)


def _keep(constraint: Constraint, outcome: Outcome) -> Kept:
    if isinstance(outcome, InvalidRequest):
        return Kept(constraint, None, outcome.message, outcome.param)
    return Kept(constraint, outcome)


def _outcome(kept: Kept) -> Outcome:
    return kept.compiled or InvalidRequest(kept.refusal, param=kept.param)
