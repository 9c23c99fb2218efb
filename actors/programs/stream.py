"""The state of one stream, without I/O: which nodes are to be done, what they have led to, who may read what.

Nodes are numbered from 0 in the order appended and done in that order. A read names a position: it gets the value that
the last defining node before that position gave, so a variable may be written again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from sgl_actors.errors import SglActorsError
from sgl_actors.lang.errors import ProgramError
from sgl_actors.lang.ir import (
    REASONING,
    AnyNode,
    ConstantText,
    Gen,
    Join,
    Media,
    RoleBegin,
    RoleEnd,
    Select,
    SeparateReasoning,
    SetVariable,
    Variable,
    defines,
    may_define,
    outline,
)
from sgl_actors.lang.prompt import Prompt
from sgl_actors.lang.reasoning import separate
from sgl_actors.lang.results import Failure, Outcome, Segment, Usage, shorten, unknown
from sgl_actors.lang.speculation import Ahead


class Step(NamedTuple):
    """A node and its number."""

    number: int
    node: AnyNode


class Past(NamedTuple):
    """What a variable held before it was written again: from node `number` on."""

    number: int
    value: Any
    meta: dict[str, Any] | None
    adapter: str


class Stream:
    """See the module.

    Attributes:
        path: "0" for the root, "0.1" for its second child.
        place: for each fork on the way here its node's number and the branch's.
        totals: where the program keeps the usage of its streams, by path.
        prompt: what has been written.
        variables, adapters, meta, own, segments: see `Outcome`.
        scopes: prompts as they were where a scope that is still open began, by its variable.
        gens: how many model calls that sample have been made: with the path it fixes their seeds.
        ahead: of an API model, what it wrote beyond what it was asked for; see `lang.speculation`.
        alone: of an API model, not even its own text came of what a gen asked for with others: they ask by themselves from here on.
        filled: of an API model that writes whole turns, texts of gens and selects to come, by their numbers.
        computed: leading characters of the prompt's text whose KV the node has computed, by this stream or the one it was forked from.
        failure: set once; nothing is done after it.
    """

    def __init__(
        self, program: str, path: str, place: tuple[int, ...] = (), totals: dict[str, Usage] | None = None
    ) -> None:
        self.program, self.path, self.place = program, path, place
        self.prompt = Prompt()
        self.variables: dict[str, Any] = {}
        self.adapters: dict[str, str] = {}
        self.meta: dict[str, dict[str, Any]] = {}
        self.segments: list[Segment] = []
        self.scopes: dict[str, str] = {}
        self.own: dict[str, None] = {}
        self.added: list[AnyNode] = []
        self.branches: dict[int, list[Outcome]] = {}
        self.usage = Usage()
        self._totals = {} if totals is None else totals
        self.gens = 0
        self.computed = 0
        self.ahead: Ahead | None = None
        self.filled: dict[int, str] = {}
        self.alone = False
        self.failure: Failure | None = None
        self._steps: list[Step] = []
        self._lost: list[Step] = []
        self._length = 0
        self._places: dict[str, tuple[int, int, str, int]] = {}
        self._since: dict[str, int] = {}
        self._past: dict[str, list[Past]] = {}

    def __repr__(self) -> str:
        return f"<Stream {self.path} of {self.program}: {self._length} nodes, {len(self._steps)} to do>"

    @property
    def length(self) -> int:
        """Nodes appended so far."""
        return self._length

    @property
    def number(self) -> int:
        """Of the node that is being done."""
        return self._steps[0].number if self._steps else self._length

    @property
    def position(self) -> tuple[int, ...]:
        """Place in program order of the node that is being done."""
        return (*self.place, self.number)

    @property
    def idle(self) -> bool:
        """Nothing is to be done."""
        return not self._steps

    def append(self, nodes: Sequence[AnyNode]) -> list[Step]:
        """Number nodes and take them in; a failed stream drops them."""
        steps = [Step(self._length + index, node) for index, node in enumerate(nodes)]
        self._length += len(steps)
        (self._steps if self.failure is None else self._lost).extend(steps)
        return steps

    def head(self) -> Step | None:
        """The node to be done next; it stays the head until `done`."""
        return self._steps[0] if self._steps else None

    def later(self) -> list[Step]:
        """Nodes behind the head that have been appended so far."""
        return self._steps[1:]

    def done(self, number: int) -> None:
        """The head has been done."""
        step = self._steps.pop(0)
        assert step.number == number

    def reached(self, position: int) -> bool:
        """Whether all nodes before `position` are done, or never will be."""
        return not self._steps or self._steps[0].number >= position

    def definer(self, name: str, position: int) -> int | None:
        """Number of the last node before `position` that is still to be done and may define `name`."""
        found = None
        for number, node in self._steps:
            if number >= position:
                break
            if may_define(node, name):
                found = number
        return found

    def will_be(self, name: str) -> bool:
        """Whether a node still to be done may define `name`."""
        return any(may_define(step.node, name) for step in self._steps)

    def write(self, node: ConstantText | RoleBegin | RoleEnd | Media) -> None:
        """Change the prompt. `InvalidPrimitive` for wrong nesting."""
        match node:
            case ConstantText(text):
                self.prompt.append(text)
            case RoleBegin(role):
                self.prompt.begin(role)
            case RoleEnd(role):
                self.prompt.end(role)
            case Media():
                self.prompt.attach(node)
        self.added.append(node)

    def generated(self, name: str | None, text: str) -> None:
        """Add what the model wrote; of a variable, it is known where it stands."""
        if name is not None:
            self._places[name] = (*self.prompt.place, text, len(self.added))
        self.write(ConstantText(text))

    def define(
        self, name: str | None, value: Any, meta: dict[str, Any] | None = None, adapter: str = ""
    ) -> None:
        """Give a variable a value; nothing without a name."""
        if name is not None:
            number = self._steps[0].number if self._steps else self._length
            if name in self.variables and self._since.get(name, -1) < number:
                past = Past(
                    self._since.get(name, -1),
                    self.variables[name],
                    self.meta.get(name),
                    self.adapters.get(name, ""),
                )
                self._past.setdefault(name, []).append(past)
            self._since[name] = number
            self.variables[name] = value
            self.own[name] = None
            self.adapters.pop(name, None)
            if adapter:
                self.adapters[name] = adapter
            if meta is not None:
                self.meta[name] = meta

    def separate(self, node: SeparateReasoning) -> None:
        """Take the reasoning out of its variables and out of the prompt, the last one first."""
        for name in reversed(node.names):
            turn, start, text, index = self._places[name]
            reasoning, answer = separate(text, node.model)
            cut = len(text) - len(answer)
            self.prompt.cut(turn, start, start + cut)
            self.computed = 0  # it is counted in the text for the model, which is another one now
            self.added[index] = ConstantText(answer)
            held, adapter = self.variables[name], self.adapters.get(name, "")
            if isinstance(held, list):  # several completions
                pairs = [separate(one, node.model) for one in held]
                self.define(name, [one for _, one in pairs], adapter=adapter)
                self.define(name + REASONING, [one for one, _ in pairs])
            else:
                self.define(name, answer, adapter=adapter)
                self.define(name + REASONING, reasoning)

    def note(
        self, kind: str, text: str, name: str, before: Usage, begun: float, seconds: float, fork: int
    ) -> None:
        """Remember what a node has led to; see `Segment`."""
        used = msgspec.structs.asdict(self.usage - before)
        self.segments.append(Segment(kind, text, name, seconds=seconds, begun=begun, fork=fork, **used))

    def count(self, used: Usage) -> None:
        """Add to the usage, also to the program's."""
        self.usage += used
        self._totals[self.path] = self.usage

    def read(self, name: str, position: int, *, meta: bool = False) -> Any:
        """Value of a variable as of `position`, or the `Failure` why there is none. Only when no `definer` is left."""
        lost = any(step.number < position and may_define(step.node, name) for step in self._lost)
        held = self.meta if meta else self.variables
        past = self._before(name, position)
        if name in held and not lost and past is None:
            return held[name]
        if past is not None and not lost and not (meta and past.meta is None):
            return past.meta if meta else past.value
        return self.failure or unknown(name, self.program, self.path, [*held, *self._promised(position)])

    def adapter(self, name: str, position: int) -> str:
        """The adapter of a variable's value as of `position`."""
        past = self._before(name, position)
        return self.adapters.get(name, "") if past is None else past.adapter

    def _before(self, name: str, position: int) -> Past | None:
        """What a variable that was written again since held at `position`; None if that is what it holds now."""
        if self._since.get(name, -1) < position:
            return None
        return next((one for one in reversed(self._past.get(name, ())) if one.number < position), None)

    def _promised(self, position: int) -> set[str]:
        """Names that nodes before `position` will define."""
        return {name for step in self._steps if step.number < position for name in defines(step.node)}

    def fail(self, failure: Failure) -> None:
        """End the stream: what is left will not be done."""
        if self.failure is None:
            self.failure = failure
            self._lost.extend(self._steps)
            self._steps.clear()

    def failure_of(self, error: BaseException) -> Failure:
        """Describe an error of the node being done now."""
        number, node = self._steps[0] if self._steps else (-1, None)
        name = node.name if isinstance(node, Gen | Select | Join | SetVariable | Variable) else None
        tail = shorten(self.prompt.sketch())
        return describe_failure(error, self.program, self.path, name or "", tail, number)

    def failure_here(self, failure: Failure) -> Failure:
        """The same; one of no primitive is of the node being done now."""
        if failure.number >= 0 or not self._steps:
            return failure
        return msgspec.structs.replace(failure, origin=self.path, number=self._steps[0].number)

    def failure_of_branch(self, failure: Failure) -> Failure:
        """What a branch's failure means for the stream that joins it."""
        return Failure(
            "primitive_failed",
            f"branch {failure.stream} failed"
            + (f" at variable {failure.variable!r}" if failure.variable else "")
            + f": {failure.message}",
            self.program,
            self.path,
            "",
            failure.tail,
            failure.cause_code or failure.code,
            failure.cause_message or failure.message,
            failure.origin or failure.stream,
            failure.number,
        )

    def tail(self) -> str:
        """End of the prompt without its template, and what is still to come."""
        return shorten(self.prompt.sketch() + "".join(outline(step.node) for step in self._steps))

    def outcome(self, text: str) -> Outcome:
        """What it holds now; `text` is the rendered prompt."""
        return Outcome(
            stream=self.path,
            text=text,
            turns=self.prompt.messages(),
            variables=dict(self.variables),
            meta=dict(self.meta),
            usage=self.usage,
            own=list(self.own),
            added=list(self.added) if self.path != "0" else [],
            branches=dict(self.branches),
            failure=self.failure,
            segments=list(self.segments),
            media=list(self.prompt.media),
            adapters=dict(self.adapters),
        )


def describe_failure(
    error: BaseException, program: str, path: str, variable: str, tail: str, number: int = -1
) -> Failure:
    """An error in a form that travels. A `ProgramError` keeps its class, anything else becomes the cause of a `PrimitiveFailed`."""
    if isinstance(error, ProgramError):
        return Failure(error.code, error.message, program, path, variable, tail, origin=path, number=number)
    code = error.code if isinstance(error, SglActorsError) else "remote_error"
    message = error.message if isinstance(error, SglActorsError) else f"{type(error).__name__}: {error}"
    name = type(error).__name__ if isinstance(error, SglActorsError) else "internal error"
    return Failure(
        "primitive_failed", f"{name}: {message}", program, path, variable, tail, code, message, path, number
    )
