"""One stream of a program: does its nodes in order, forks children, collects them.

Owns: the stream's state (`stream.Stream`) and its children, which are actors below it and end with it.
In: `Append`, `Begin`, `Read`, `Result`, `Snapshot`, `Finish`, `Branch`, `Drop`, `Peek`, `Listen`. Out: `Generate` and `Tokenize` to the node
(through a `Client`), `Begin` and `Finish` to children.
Asks are answered while a node is being done; nothing here waits inside `receive`.
When a node fails the stream fails: what waits for it gets the failure, what comes later is dropped, and nothing hangs. When the
actor itself ends, whoever waits gets `ActorDown`, and what it had asked of the node is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, Final, NamedTuple

from sgl_actors.actors.microkernel import Actor, Address, Context, Down, Message, Request
from sgl_actors.actors.programs import interpreter, remote, remote_select, selection
from sgl_actors.actors.programs.audience import Audience, Listener, common
from sgl_actors.actors.programs.lookahead import is_open, looked_at
from sgl_actors.actors.programs.messages import (
    Append,
    Appended,
    Begin,
    Branch,
    Drop,
    Finish,
    Listen,
    Peek,
    Read,
    Report,
    Result,
    Snapshot,
    Tail,
    Value,
)
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Step, Stream
from sgl_actors.errors import InvalidRequest, SglActorsError, UnknownVariable
from sgl_actors.lang.errors import BranchCancelled, InvalidPrimitive
from sgl_actors.lang.ir import (
    APPEND,
    Argument,
    ConstantText,
    Fork,
    Gen,
    Join,
    Media,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    SeparateReasoning,
    SetVariable,
    Variable,
)
from sgl_actors.lang.results import Failure, Outcome, each, unknown

HOLD, DURABLE_HOLD = 0.02, 0.5
"""Seconds without news after which a stream on an API model takes what it has for all that one call can be for. Of a durable program longer: what a call is for is part of
its record."""
AGAIN: Final = 60.0
"""Seconds without news that a resumed program's body may need until it has appended what it had by then the first time."""


class Mark(NamedTuple):
    """Somebody waits for all nodes before `position`; with `finish`, for the children, too."""

    position: int
    request: Request
    finish: bool


class StreamActor(Actor):
    """See the module. Its config holds `setup` (a `Setup`) and `path` under "stream"."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._setup: Setup = context.config["stream"]["setup"]
        own = context.config["stream"]
        self._stream = Stream(self._setup.name, own["path"], own.get("place", ()), self._setup.usage)
        self._begun = self._running = False
        self._forks: dict[int, list[Address]] = {}
        self._results: dict[int, Value] = {}
        self._born = 0
        self._early: list[tuple[Message, Request]] = []
        self._waiters: defaultdict[int, list[tuple[Message, Request]]] = defaultdict(list)
        self._marks: list[Mark] = []
        self._audience = Audience()
        self._doing: asyncio.Timeout | None = None
        self._dropped: Failure | None = None
        self._news = asyncio.Event()

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See `Actor.receive`."""
        self._news.set()
        match message:
            case Append(nodes):
                return self._append(nodes)
            case Begin(failure=None):
                if not self._begun:
                    self._begin(message)
            case Begin(prompt, _, Failure() as failure):
                self._stream.prompt = prompt.copy()
                self._fail(failure)
            case Read(name, position):
                self._wait_or_answer(self._stream.definer(name, position), message, request)
            case Result(number):
                self._wait_or_answer(None if self._stream.reached(number + 1) else number, message, request)
            case Snapshot() | Finish():
                self._marks.append(Mark(self._stream.length, request, isinstance(message, Finish)))
            case Drop(reason):
                self._drop(reason)
            case Branch(fork, index):
                return Report(self._branch(fork, index))
            case Peek():
                return Tail(self._stream.tail())
            case Listen(name):
                if self._begun:
                    self._listen(name, request)
                else:
                    self._early.append((message, request))
            case Down():
                return None  # a child that is gone shows when it is collected
            case _:
                return await super().receive(message, request)
        self._go_on()
        return None

    # -- asks ---------------------------------------------------------------------------------------------

    def _begin(self, message: Begin) -> None:
        self._stream.prompt, self._stream.computed, self._begun = (
            message.prompt.copy(),
            message.computed,
            True,
        )
        self._stream.variables.update(message.variables)
        self._stream.adapters.update(message.adapters)
        self._answer_early()

    def _answer_early(self) -> None:
        """What was asked before it was known what this stream inherits."""
        early, self._early = self._early, []
        for ask, asked in early:
            if isinstance(ask, Listen):
                self._listen(ask.name, asked)
            else:
                self._answer(ask, asked)

    def _append(self, nodes: list[Any]) -> Appended:
        failed = self._stream.failure
        children = []
        for step in self._stream.append(nodes):
            if isinstance(step.node, Fork) and failed is None:
                self._forks[step.number] = [self._spawn(step.number, n) for n in range(step.node.count)]
                children.append(self._forks[step.number])
        self._go_on()
        return Appended(children, failed)

    def _spawn(self, fork: int, branch: int) -> Address:
        path = f"{self._stream.path}.{self._born}"
        self._born += 1
        place = (*self._stream.place, fork, branch)
        config = {"stream": {"setup": self._setup, "path": path, "place": place}}
        return self.ctx.spawn(StreamActor, self._setup.actor(path), config)

    def _wait_or_answer(self, number: int | None, message: Message, request: Request) -> None:
        if number is None and not self._begun and self._stream.failure is None:
            self._early.append((message, request))  # what it inherits is not known yet
        elif number is None:
            self._answer(message, request)
        else:
            self._waiters[number].append((message, request))

    def _answer(self, message: Message, request: Request) -> None:
        match message:
            case Read(name, position, meta):
                value = self._stream.read(name, position, meta=meta)
                adapter = "" if meta else self._stream.adapter(name, position)
                answer = Value(value, adapters={"": adapter} if adapter else {})
            case Result(number):
                value = self._results.get(number, self._stream.failure)
                answer = value if isinstance(value, Value) else Value()
        request.reply(Value(failure=value) if isinstance(value, Failure) else answer)

    def _branch(self, fork: int, index: int) -> Outcome:
        branches = self._stream.branches.get(fork, [])
        if index < len(branches):
            return branches[index]
        failure = self._stream.failure or Failure(
            "stream_ended", "this branch was never collected", self._setup.name, self._stream.path
        )
        return Outcome(f"{self._stream.path}.?", failure=failure)

    def _listen(self, name: str, request: Request) -> None:
        stream = self._stream
        if name and name in stream.variables and not stream.will_be(name):
            listener = Listener(name, request)
            listener.piece(str(stream.variables[name]))
            listener.end()
        elif stream.failure is not None:
            request.fail(stream.failure.error())
        else:
            self._audience.listen(name, request)
            if not name:
                self.ctx.task(self._show(), name=f"{self.ctx.address} shows its prompt")

    def _drop(self, reason: str) -> None:
        """Give up what is being done, and have the children do so."""
        message = "the branch was cancelled" + (f": {reason}" if reason else "")
        failure = Failure(BranchCancelled.code, message, self._setup.name, self._stream.path)
        for children in self._forks.values():
            for child in children:
                self.ctx.cast(child, Drop(reason))
        if self._doing is not None:
            self._dropped = self._dropped or failure
            if not self._doing.expired():
                self._doing.reschedule(0.0)
        else:
            self._fail(failure)

    # -- doing --------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self._begun and not self._running and (self._marks or not self._stream.idle):
            self._running = True
            self.ctx.task(self._run(), name=f"{self.ctx.address} interprets")

    async def _run(self) -> None:
        try:
            while True:
                await self._serve_marks()
                step = self._stream.head()
                if step is None:
                    if not self._marks:
                        return
                    continue
                try:
                    await self._attempt(step)
                except TimeoutError:
                    late = self._stream.failure_of(self._setup.late())
                    self._fail(self._dropped or late)
                except Carried as carried:
                    self._fail(self._stream.failure_here(carried.failure))
                except SglActorsError as error:
                    self._fail(self._stream.failure_of(error))
                except Exception as error:
                    self.log.exception("a node failed", number=step.number)
                    self._fail(self._stream.failure_of(error))
                else:
                    self._done(step)
                    await self._show()
        finally:
            self._running = False

    async def _attempt(self, step: Step) -> None:
        """Do a node within the program's time, unless the stream is cancelled meanwhile."""
        try:
            async with asyncio.timeout(self._left()) as self._doing:
                if self._setup.client.api is not None and isinstance(step.node, Gen | Select):
                    await self._await_more(step.node)
                await self._do(step)
        finally:
            self._doing = None
        if self._dropped is not None:  # it came as the node was ending
            raise Carried(self._dropped)

    async def _do(self, step: Step) -> None:
        stream, node = self._stream, step.node
        before, begun = stream.usage, self.ctx.now()
        kind, text, name, fork = "given", "", "", -1
        match node:
            case ConstantText(text=text):
                stream.write(node)
            case RoleBegin(role=name) | RoleEnd(role=name):
                stream.write(node)
                kind = "role"
            case Gen():
                self._audience.begin(node.name)
                await self._generate(node)
                kind, text, name = "generated", self._audience.text, node.name or ""
            case Select():
                self._audience.begin(node.name)
                choose = selection.select if self._setup.client.api is None else remote_select.select
                text = await choose(stream, node, self._setup, self._left())
                self._audience.write(text)
                kind, name = "selected", node.name or ""
            case Variable(name=name):
                text = str(await self._value(node))
                stream.write(ConstantText(text))
            case SetVariable(name=name, value=value, adapter=adapter):
                stream.define(name, value, adapter=adapter)
                self._audience.tell(name, str(value))
                kind = "set"
            case Media():
                stream.write(node)
                text = f"{{{node.kind}}}"
            case ScopeBegin(name=name):
                stream.scopes[name] = await self._setup.frames.text(stream.prompt)
                kind = "scope"
            case ScopeEnd(name=name):
                await self._end_scope(name)
                kind = "scope"
            case SeparateReasoning():
                stream.separate(node)
                kind = "separated"
            case Argument(name=name):
                raise InvalidRequest(f"argument {name!r} was not given when the program was recorded")
            case Fork():
                await self._fork(step.number)
                kind, fork = "fork", step.number
            case Join():
                await self._join(step.number, node)
                kind, name, fork = "join", node.name or "", node.fork
        now = self.ctx.now()
        stream.note(kind, text, name, before, begun - self._setup.started, now - begun, fork)

    async def _generate(self, node: Gen) -> None:
        stream, setup, emit = self._stream, self._setup, self._audience.write
        if setup.client.api is None:
            await interpreter.generate(stream, node, setup, self._left(), emit)
        else:
            live = setup.live or self._audience.follows(node.name)
            await remote.generate(stream, node, setup, self._left(), emit, live=live)

    async def _await_more(self, node: Gen | Select) -> None:
        """Wait a moment for what follows the gen that is to be done: one call of an API model may be for several, and is streamed only if somebody reads.

        The body goes on meanwhile, until it waits for something. A stream that somebody waits for has what it gets; so has one whose turn is closed, once
        somebody reads the gen.
        """
        setup, stream = self._setup, self._stream
        if (known := looked_at(stream, setup)) is not None:
            await self._await_known(known)
            return
        while not (self._waiters or self._marks):
            more = setup.speculation and is_open(stream)
            if not more and (setup.live or isinstance(node, Select) or self._audience.follows(node.name)):
                return
            hold = DURABLE_HOLD if more and setup.entry is not None else HOLD
            self._news.clear()
            try:
                async with asyncio.timeout(hold):
                    await self._news.wait()
            except TimeoutError:
                return

    async def _await_known(self, known: int) -> None:
        """Wait for as many nodes as there were when a run before this one asked: the body appends them again, or is not what it was."""
        while len(self._stream.later()) < known and not any(mark.finish for mark in self._marks):
            self._news.clear()
            try:
                async with asyncio.timeout(AGAIN):
                    await self._news.wait()
            except TimeoutError:
                return

    async def _end_scope(self, name: str) -> None:
        before = self._stream.scopes.pop(name, None)
        if before is None:
            raise InvalidPrimitive(f"var_scope({name!r}) ends, but has not begun")
        text = await self._setup.frames.text(self._stream.prompt)
        self._stream.define(name, text[common(before, text) :])

    def _left(self) -> float:
        left = self._setup.deadline - self.ctx.now()
        if left <= 0:
            raise self._setup.late()
        return left

    async def _show(self) -> None:
        """Those who follow the prompt as a whole get what is new of it, what is being generated included."""
        stream = self._stream
        while self._audience.follows_prompt and stream.failure is None:
            written = len(stream.added)
            try:
                text = await self._setup.frames.text(stream.prompt)
            except SglActorsError:
                return  # a gen would say so; what the template does not take now it may take with the next turn
            if len(stream.added) == written:  # nothing was done while the template was asked
                self._audience.show(text + self._audience.text)
                return

    async def _value(self, node: Variable) -> Any:
        """Value of a variable of this stream, of a collected branch, or of another stream that runs."""
        if not node.stream or node.stream == self._stream.path:
            value = self._stream.read(node.name, self._stream.length)
        else:
            for branch in (
                b for group in self._stream.branches.values() for top in group for b in top.walk()
            ):
                if branch.stream == node.stream:
                    if node.name not in branch.variables:
                        raise Carried(
                            branch.failure
                            or unknown(node.name, self._setup.name, branch.stream, branch.variables)
                        )
                    return branch.variables[node.name]
            ask = Read(node.name, node.position)
            answer = await self.ctx.call(
                self._setup.actor(node.stream), ask, Value, timeout=self._left(), trace=self._setup.program
            )
            value = answer.failure or answer.value
        if isinstance(value, Failure):
            raise Carried(value)
        return value

    async def _fork(self, number: int) -> None:
        """Let the children start, once what they share is in the cache."""
        children, stream, setup = self._forks[number], self._stream, self._setup
        hint = setup.fork_hint and setup.client.api is None
        if hint and len(children) > 1 and not stream.prompt.empty:
            text = await setup.frames.text(stream.prompt)
            await interpreter.precompute(stream, text, setup, self._left())
        for child in children:
            begin = Begin(
                stream.prompt.copy(), dict(stream.variables), None, stream.computed, dict(stream.adapters)
            )
            self.ctx.cast(child, begin, trace=setup.program)

    async def _join(self, number: int, node: Join) -> None:
        collected = await self._collect(node.fork)
        failures = {i: o.failure for i, o in enumerate(collected) if o.failure is not None}
        if failures and not node.keep:
            raise Carried(self._stream.failure_of_branch(next(iter(failures.values()))))
        outcomes = [outcome for outcome in collected if outcome.failure is None]
        if node.mode == APPEND:
            for outcome in outcomes:
                for added in outcome.added:
                    assert isinstance(added, ConstantText | RoleBegin | RoleEnd | Media)
                    self._stream.write(added)
            value: Any = ["".join(a.text for a in o.added if isinstance(a, ConstantText)) for o in outcomes]
            adapters = {}
        elif node.name is None:
            names = dict.fromkeys(name for outcome in outcomes for name in outcome.own)
            for name in names:
                if name in self._stream.variables:
                    raise InvalidPrimitive(
                        f"join(): branches have set {name!r}, which has a value here; join({name!r}) makes it the list of theirs"
                    )
            for name in names:
                self._gather(name, [o for o in outcomes if name in o.own])
            value = {name: self._stream.variables[name] for name in names}
            adapters = {name: self._stream.adapters.get(name, "") for name in names}
        else:
            for outcome in outcomes:
                if node.name not in outcome.variables:
                    raise UnknownVariable(
                        f"join({node.name!r}): branch {outcome.stream} has no such variable"
                    )
            self._gather(node.name, collected)
            value = self._stream.variables[node.name]
            adapters = {"": self._stream.adapters.get(node.name, "")}
        self._results[number] = Value(value, None, adapters, failures)

    def _gather(self, name: str, outcomes: list[Outcome]) -> None:
        """Set a variable to the list of the branches' values of it; None where one failed."""
        adapters = [o.adapters.get(name, "") for o in outcomes if o.failure is None]
        adapter = adapters[0] if len(set(adapters)) == 1 else ""
        if any(adapters) and not adapter:
            adapter = each([o.adapters.get(name, "") for o in outcomes])
        values = [o.variables[name] if o.failure is None else None for o in outcomes]
        self._stream.define(name, values, adapter=adapter)

    async def _collect(self, fork: int) -> list[Outcome]:
        """Outcomes of a fork's children, which end."""
        children = self._forks.get(fork)
        if children is None:
            raise InvalidRequest(f"join: node {fork} is no fork, or has been joined")
        timeout = self._left()
        asks = [
            self.ctx.call(child, Finish(), Report, timeout=timeout, trace=self._setup.program)
            for child in children
        ]
        answers = await asyncio.gather(*asks, return_exceptions=True)
        outcomes = []
        for child, answer in zip(children, answers, strict=True):
            path = child.name.rpartition("/")[2]
            if isinstance(answer, Report):
                outcomes.append(answer.outcome)
            elif isinstance(answer, SglActorsError):
                outcomes.append(
                    Outcome(path, failure=Failure(answer.code, answer.message, self._setup.name, path))
                )
            elif isinstance(answer, BaseException):
                raise answer
            self.ctx.stop(child, "collected")
        del self._forks[fork]  # until here a drop goes on to them
        self._stream.branches[fork] = outcomes
        return outcomes

    # -- what follows from it -----------------------------------------------------------------------------

    def _done(self, step: Step) -> None:
        self._stream.done(step.number)
        for message, request in self._waiters.pop(step.number, ()):
            self._answer(message, request)
        self._audience.done()

    def _fail(self, failure: Failure) -> None:
        begun = {step_number for step_number in self._forks if self._stream.reached(step_number + 1)}
        self._stream.fail(failure)
        self._begun = True
        self._answer_early()
        for waiting in list(self._waiters.values()):
            for message, request in waiting:
                self._answer(message, request)
        self._waiters.clear()
        self._audience.fail(failure.error)
        for number, children in self._forks.items():
            if number not in begun:
                for child in children:
                    self.ctx.cast(child, Begin(self._stream.prompt.copy(), {}, failure))

    async def _serve_marks(self) -> None:
        for mark in [m for m in self._marks if self._stream.reached(m.position)]:
            self._marks.remove(mark)
            if mark.finish:
                await self._end()
            mark.request.reply(Report(self._stream.outcome(await self._text())))

    async def _end(self) -> None:
        """Everything has been appended: collect the children nobody joined, and let nobody wait for more."""
        for fork in list(self._forks):
            if self._stream.failure is None:
                try:
                    await self._collect(fork)
                except SglActorsError as error:
                    self._fail(self._stream.failure_of(error))
        stream = self._stream
        await self._show()
        if self._audience.follows_prompt:
            await self._text()
        self._audience.close(
            lambda name: unknown(name, self._setup.name, stream.path, stream.variables).error()
        )

    async def _text(self) -> str:
        """The rendered prompt; of a failed stream, the prompt without its template."""
        if self._stream.failure is None:
            try:
                return await self._setup.frames.text(self._stream.prompt)
            except SglActorsError as error:
                self._fail(self._stream.failure_of(error))
        return self._stream.prompt.sketch()


class Carried(Exception):
    """A failure that is described already, on its way to `_fail`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
