"""One stream of a program: does its nodes in order, forks children, collects them.

Owns: the stream's state (`stream.Stream`) and its children, which are actors below it and end with it.
In: `Append`, `Begin`, `Read`, `Result`, `Snapshot`, `Finish`, `Branch`, `Peek`, `Listen`. Out: `Generate` and `Tokenize` to the node
(through a `Client`), `Begin` and `Finish` to children.
Asks are answered while a node is being done; nothing here waits inside `receive`.
When a node fails the stream fails: what waits for it gets the failure, what comes later is dropped, and nothing hangs. When the
actor itself ends, whoever waits gets `ActorDown`, and what it had asked of the node is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, NamedTuple

from sgl_actors.actors.microkernel import Actor, Address, Context, Down, Message, Request
from sgl_actors.actors.programs import interpreter
from sgl_actors.actors.programs.messages import (
    Append,
    Appended,
    Begin,
    Branch,
    Finish,
    Listen,
    Peek,
    Piece,
    Read,
    Report,
    Result,
    Snapshot,
    Tail,
    Value,
)
from sgl_actors.actors.programs.setup import Setup
from sgl_actors.actors.programs.stream import Step, Stream
from sgl_actors.errors import DeadlineExceeded, InvalidRequest, SglActorsError, UnknownVariable
from sgl_actors.lang.ir import (
    APPEND,
    ConstantText,
    Fork,
    Gen,
    Join,
    RoleBegin,
    RoleEnd,
    Select,
    SetVariable,
    Variable,
)
from sgl_actors.lang.results import Failure, Outcome, unknown


class Mark(NamedTuple):
    """Somebody waits for all nodes before `position`; with `finish`, for the children, too."""

    position: int
    request: Request
    finish: bool


class Listener:
    """Hands a variable's text to whoever listens, as fast as it is taken."""

    def __init__(self, name: str, request: Request) -> None:
        self.name, self.request = name, request
        self._waiting = ""
        request.on_credit(self._flush)

    def piece(self, text: str) -> None:
        """More text; pieces that are not taken yet are put together."""
        self._waiting += text
        self._flush()

    def end(self) -> None:
        """The variable is complete."""
        self.request.end(Piece(self._waiting) if self._waiting else None)

    def _flush(self) -> None:
        if self._waiting and self.request.item(Piece(self._waiting)):
            self._waiting = ""


class StreamActor(Actor):
    """See the module. Its config holds `setup` (a `Setup`) and `path` under "stream"."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._setup: Setup = context.config["stream"]["setup"]
        self._stream = Stream(self._setup.name, context.config["stream"]["path"])
        self._begun = self._running = False
        self._forks: dict[int, list[Address]] = {}
        self._born = 0
        self._early: list[tuple[Message, Request]] = []
        self._waiters: defaultdict[int, list[tuple[Message, Request]]] = defaultdict(list)
        self._marks: list[Mark] = []
        self._listeners: list[Listener] = []
        self._writing: tuple[str | None, list[str]] = (None, [])

    async def receive(self, message: Message, request: Request) -> Message | None:
        """See `Actor.receive`."""
        match message:
            case Append(nodes):
                return self._append(nodes)
            case Begin(prompt, variables, failure, computed):
                self._stream.prompt, self._stream.computed, self._begun = prompt.copy(), computed, True
                self._stream.variables.update(variables)
                if failure is not None:
                    self._fail(failure)
                early, self._early = self._early, []
                for ask, asked in early:
                    self._answer(ask, asked)
            case Read(name, position):
                self._wait_or_answer(self._stream.definer(name, position), message, request)
            case Result(number):
                self._wait_or_answer(None if self._stream.reached(number + 1) else number, message, request)
            case Snapshot() | Finish():
                self._marks.append(Mark(self._stream.length, request, isinstance(message, Finish)))
            case Branch(fork, index):
                return Report(self._branch(fork, index))
            case Peek():
                return Tail(self._stream.tail())
            case Listen(name):
                self._listen(name, request)
            case Down():
                return None  # a child that is gone shows when it is collected
            case _:
                return await super().receive(message, request)
        self._go_on()
        return None

    # -- asks ---------------------------------------------------------------------------------------------

    def _append(self, nodes: list[Any]) -> Appended:
        failed = self._stream.failure
        children = []
        for step in self._stream.append(nodes):
            if isinstance(step.node, Fork) and failed is None:
                self._forks[step.number] = [self._spawn() for _ in range(step.node.count)]
                children.append(self._forks[step.number])
        self._go_on()
        return Appended(children, failed)

    def _spawn(self) -> Address:
        path = f"{self._stream.path}.{self._born}"
        self._born += 1
        config = {"stream": {"setup": self._setup, "path": path}}
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
            case Result(number):
                value = self._stream.results.get(number, self._stream.failure)
        request.reply(Value(failure=value) if isinstance(value, Failure) else Value(value))

    def _branch(self, fork: int, index: int) -> Outcome:
        branches = self._stream.branches.get(fork, [])
        if index < len(branches):
            return branches[index]
        failure = self._stream.failure or Failure(
            "stream_ended", "this branch was never collected", self._setup.name, self._stream.path
        )
        return Outcome(f"{self._stream.path}.?", failure=failure)

    def _listen(self, name: str, request: Request) -> None:
        listener = Listener(name, request)
        if name in self._stream.variables and not self._stream.will_be(name):
            listener.piece(str(self._stream.variables[name]))
            listener.end()
        elif self._stream.failure is not None:
            request.fail(self._stream.failure.error())
        else:
            if self._writing[0] == name:
                listener.piece("".join(self._writing[1]))
            self._listeners.append(listener)
            request.on_cancel(lambda: self._unlisten(listener))

    def _unlisten(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

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
                    async with asyncio.timeout(self._left()):
                        await self._do(step)
                except TimeoutError:
                    self._fail(self._stream.failure_of(DeadlineExceeded("the program's time is over")))
                except Carried as carried:
                    self._fail(carried.failure)
                except SglActorsError as error:
                    self._fail(self._stream.failure_of(error))
                except Exception as error:
                    self.log.exception("a node failed", number=step.number)
                    self._fail(self._stream.failure_of(error))
                else:
                    self._done(step)
        finally:
            self._running = False

    async def _do(self, step: Step) -> None:
        match step.node:
            case ConstantText() | RoleBegin() | RoleEnd():
                self._stream.write(step.node)
            case Gen(name):
                self._writing = (name, [])
                await interpreter.generate(self._stream, step.node, self._setup, self._left(), self._emit)
            case Select(name):
                self._writing = (name, [])
                self._emit(await interpreter.select(self._stream, step.node, self._setup, self._left()))
            case Variable():
                self._stream.write(ConstantText(str(await self._value(step.node))))
            case SetVariable(name, value):
                self._writing = (name, [])
                self._stream.define(name, value)
                self._emit(str(value))
            case Fork():
                await self._fork(step.number)
            case Join():
                await self._join(step.number, step.node)

    def _left(self) -> float:
        left = self._setup.deadline - self.ctx.now()
        if left <= 0:
            raise DeadlineExceeded("the program's time is over")
        return left

    def _emit(self, text: str) -> None:
        name, pieces = self._writing
        pieces.append(text)
        for listener in self._listeners:
            if listener.name == name:
                listener.piece(text)

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
        if setup.fork_hint and len(children) > 1 and not stream.prompt.empty:
            text = await setup.frames.text(stream.prompt)
            await interpreter.precompute(stream, text, setup, self._left())
        for child in children:
            begin = Begin(stream.prompt.copy(), dict(stream.variables), computed=stream.computed)
            self.ctx.cast(child, begin, trace=setup.program)

    async def _join(self, number: int, node: Join) -> None:
        outcomes = await self._collect(node.fork)
        for outcome in outcomes:
            if outcome.failure is not None:
                raise Carried(self._stream.failure_of_branch(outcome.failure))
        if node.mode == APPEND:
            for outcome in outcomes:
                for added in outcome.added:
                    assert isinstance(added, ConstantText | RoleBegin | RoleEnd)
                    self._stream.write(added)
            self._stream.results[number] = [
                "".join(a.text for a in o.added if isinstance(a, ConstantText)) for o in outcomes
            ]
        elif node.name is None:
            names = dict.fromkeys(name for outcome in outcomes for name in outcome.own)
            gathered = {name: [o.variables[name] for o in outcomes if name in o.own] for name in names}
            for name, values in gathered.items():
                self._stream.define(name, values)
            self._stream.results[number] = gathered
        else:
            for outcome in outcomes:
                if node.name not in outcome.variables:
                    raise UnknownVariable(
                        f"join({node.name!r}): branch {outcome.stream} has no such variable"
                    )
            values = [outcome.variables[node.name] for outcome in outcomes]
            self._stream.define(node.name, values)
            self._stream.results[number] = values

    async def _collect(self, fork: int) -> list[Outcome]:
        """Outcomes of a fork's children, which end."""
        children = self._forks.pop(fork, None)
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
        self._stream.branches[fork] = outcomes
        return outcomes

    # -- what follows from it -----------------------------------------------------------------------------

    def _done(self, step: Step) -> None:
        self._stream.done(step.number)
        for message, request in self._waiters.pop(step.number, ()):
            self._answer(message, request)
        name, _ = self._writing
        if name is not None:
            self._writing = (None, [])
            for listener in [one for one in self._listeners if one.name == name]:
                listener.end()
                self._listeners.remove(listener)

    def _fail(self, failure: Failure) -> None:
        begun = {step_number for step_number in self._forks if self._stream.reached(step_number + 1)}
        self._stream.fail(failure)
        self._writing = (None, [])
        for waiting in list(self._waiters.values()):
            for message, request in waiting:
                self._answer(message, request)
        self._waiters.clear()
        for listener in self._listeners:
            listener.request.fail(failure.error())
        self._listeners.clear()
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
        for listener in self._listeners:
            listener.request.fail(
                unknown(listener.name, self._setup.name, self._stream.path, self._stream.variables).error()
            )
        self._listeners.clear()

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
