"""What a program's body holds (`ProgramState`, `ProgramGroup`, `Ref`) and what `run()` returns (`FinishedState`)."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar, NoReturn, Self

import msgspec

from sgl_actors.lang.arguments import check_name, check_pin, whole
from sgl_actors.lang.errors import InvalidPrimitive, UnresolvedVariable
from sgl_actors.lang.ir import (
    APPEND,
    GATHER,
    JOIN_MODES,
    AnyNode,
    Composable,
    Gen,
    RoleBegin,
    RoleEnd,
    Select,
    SetVariable,
    Variable,
    as_nodes,
    check_text,
)
from sgl_actors.lang.protocols import Stream
from sgl_actors.lang.results import Outcome, Usage, unknown

MAX_BRANCHES = 1 << 16
"""Most branches of one fork."""


class Pending:
    """Something that has no value yet. `await` gives it; every use as a value raises `UnresolvedVariable`."""

    __slots__ = ("_what",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, what: str) -> None:
        self._what = what

    def __repr__(self) -> str:
        return f"<{self._what}: not awaited>"

    def _refuse(self, use: str) -> NoReturn:
        frame = sys._getframe(2)  # noqa: SLF001 - the line of the user's code is what helps
        raise UnresolvedVariable(
            f"{frame.f_code.co_filename}:{frame.f_lineno}: {use} of {self._what} before it has a value; write `await {self._what}`"
        )

    def __bool__(self) -> NoReturn:  # noqa: PLE0304 - that it returns nothing is the point
        self._refuse("truth")

    def __eq__(self, other: object) -> NoReturn:
        self._refuse("==")

    def __ne__(self, other: object) -> NoReturn:
        self._refuse("!=")

    def __lt__(self, other: object) -> NoReturn:
        self._refuse("<")

    def __le__(self, other: object) -> NoReturn:
        self._refuse("<=")

    def __gt__(self, other: object) -> NoReturn:
        self._refuse(">")

    def __ge__(self, other: object) -> NoReturn:
        self._refuse(">=")

    def __str__(self) -> NoReturn:  # noqa: PLE0307
        self._refuse("str()")

    def __format__(self, spec: str) -> NoReturn:
        self._refuse("formatting")

    def __iter__(self) -> NoReturn:
        self._refuse("iteration")

    def __len__(self) -> NoReturn:  # noqa: PLE0303
        self._refuse("len()")

    def __contains__(self, item: object) -> NoReturn:
        self._refuse("`in`")

    def __getitem__(self, key: object) -> NoReturn:
        self._refuse("indexing")


class Ref(Pending, Composable):
    """`s["name"]` in a body: await it for the value, or put it into a prompt, where the stream waits for it."""

    __slots__ = ("_name", "_position", "_stream")

    def __init__(self, stream: Stream, name: str) -> None:
        Pending.__init__(self, f's["{name}"]')
        self._stream, self._name, self._position = stream, name, stream.length

    @property
    def nodes(self) -> tuple[AnyNode, ...]:
        """As part of an expression."""
        return (Variable(self._name, self._stream.path, self._position),)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._stream.read(self._name, self._position).__await__()


class Joined(Pending):
    """`group.join(…)`: the join happens in any case; await it for what it collected."""

    __slots__ = ("_number", "_stream")

    def __init__(self, stream: Stream, number: int) -> None:
        super().__init__("group.join(…)")
        self._stream, self._number = stream, number

    def __await__(self) -> Generator[Any, None, Any]:
        return self._stream.result(self._number).__await__()


class ProgramState:
    """`s` of a body: a prompt that is being written and the variables in it.

    `s += expression` adds to it and never waits; what is generated is done in order, in the background.
    `await s["name"]` waits for one variable, `await s.text()` for everything added so far.
    """

    __iter__: ClassVar[None] = None

    def __init__(
        self, stream: Stream, *, names: frozenset[str] = frozenset(), role: str | None = None
    ) -> None:
        self._stream = stream
        self._names = set(names)
        self._role = role

    def __repr__(self) -> str:
        return f"<ProgramState {self._stream.path}: {self._stream.length} nodes>"

    def __iadd__(self, expression: object) -> Self:
        nodes = tuple(self._own(node) for node in as_nodes(expression))
        role = self._check_roles(nodes)
        self._stream.append(nodes)
        self._role = role
        self._names.update(n.name for n in nodes if isinstance(n, Gen | Select) and n.name)
        return self

    def __getitem__(self, name: str) -> Ref:
        if not isinstance(name, str):
            raise InvalidPrimitive(f"a variable's name is a string, not {name!r:.80}")
        check_text("s[…]: the variable's name", name, "name")
        return Ref(self._stream, name)

    def __setitem__(self, name: str, value: object) -> None:
        check_name("s[…] = …", name)
        try:
            msgspec.msgpack.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidPrimitive(
                f"s[{name!r}]: a variable holds plain data, not {type(value).__name__}: {error}"
            ) from None
        self._stream.append((SetVariable(name, value),))
        self._names.add(name)

    def __contains__(self, name: object) -> bool:
        """Whether something added so far defines that variable; does not wait."""
        return name in self._names

    @property
    def open_role(self) -> str | None:
        """Role of the turn that is being written, None outside."""
        return self._role

    def fork(self, count: int = 1) -> ProgramGroup:
        """Begin `count` states that start with all this one holds, each a stream of its own.

        The common prefix is computed once, before the first of them starts.
        """
        count = whole("fork", "count", count, 1, MAX_BRANCHES)
        number, children = self._stream.fork(count)
        states = [ProgramState(child, names=frozenset(self._names), role=self._role) for child in children]
        return ProgramGroup(self, number, states)

    async def text(self) -> str:
        """The prompt as the model sees it, once everything added so far is done."""
        return (await self._stream.snapshot()).text

    async def messages(self) -> list[dict[str, str]]:
        """The chat turns as ``{"role": …, "content": …}``, once everything added so far is done."""
        return as_messages(await self._stream.snapshot())

    async def meta(self, name: str) -> dict[str, Any]:
        """What the node reported about a variable: finish reason, tokens, scores; waits for it."""
        return await self._stream.meta(name, self._stream.length)

    async def pin(self, *, ttl: float, name: str = "") -> str:
        """Keep what this state holds from eviction for `ttl` seconds (from 1, at most 30 days), once everything added so far is done.

        Programs that begin with the same text find it in the cache meanwhile; what they add may change the last tokens. Pinning under a
        name again replaces the pin of that name. Returns the pin's name, drawn by the node if none is given.
        """
        seconds = check_pin("pin", ttl, name)
        text = (await self._stream.snapshot()).text
        if not text:
            raise InvalidPrimitive("pin: this state holds nothing yet; a prefix has at least one token")
        return (await self._stream.pin(text, seconds, name)).name

    async def sync(self) -> None:
        """Wait until everything added so far is done; raises if it failed."""
        await self._stream.snapshot()

    def _own(self, node: AnyNode) -> AnyNode:
        """A variable of this very stream is meant as of its place in the prompt."""
        if isinstance(node, Variable) and node.stream == self._stream.path:
            return Variable(node.name)
        return node

    def _check_roles(self, nodes: Sequence[AnyNode]) -> str | None:
        """The role open after `nodes`; `InvalidPrimitive` for wrong nesting."""
        role = self._role
        for node in nodes:
            if isinstance(node, RoleBegin):
                if role is not None:
                    raise InvalidPrimitive(f"{node.role} turn opened inside the {role} turn")
                role = node.role
            elif isinstance(node, RoleEnd):
                if role != node.role:
                    raise InvalidPrimitive(f"{node.role} turn closed, but {role or 'no'} turn is open")
                role = None
        return role


class ProgramGroup:
    """The branches of one fork. Iterate or index them; `group += x` adds to all of them."""

    def __init__(self, parent: ProgramState, number: int, states: list[ProgramState]) -> None:
        self._parent, self._number, self._states = parent, number, states

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self._states)

    def __getitem__(self, index: int) -> ProgramState:
        return self._states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        if self._states[index] is not state:
            raise InvalidPrimitive("a branch cannot be replaced; `group[i] += …` adds to it")

    def __iadd__(self, other: object) -> Self:
        """An expression for all, a list with one for each, or a function of the index."""
        if isinstance(other, list | tuple):
            if len(other) != len(self):
                raise InvalidPrimitive(f"group +=: {len(other)} expressions for {len(self)} branches")
            items = list(other)
        elif callable(other):
            items = [other(index) for index in range(len(self))]
        else:
            items = [other] * len(self)
        for state, item in zip(self._states, items, strict=True):
            state += item  # noqa: PLW2901 - adds to the branch in place
        return self

    def join(self, name: str | None = None, *, mode: str = GATHER) -> Joined:
        """Wait for the branches and collect; they take nothing more.

        Args:
            name: the variable to gather: a list with each branch's value is returned and set on the parent. Without it every variable that
                the branches set is gathered, and a dictionary returned.
            mode: "gather_variable", or "concate_and_append": what each branch added to its prompt is added to the parent's (and returned as a
                list of texts). Either may stand in the place of `name`, too.

        Raises (when awaited, and at `run()`):
            PrimitiveFailed: a branch failed.
            UnknownVariable: a branch has no such variable.
        """
        if name in JOIN_MODES:
            name, mode = None, str(name)
        if name is not None:
            check_name("join", name)
        if mode not in JOIN_MODES:
            raise InvalidPrimitive(
                f"join: mode is one of {', '.join(JOIN_MODES)}, not {mode!r:.80}", param="mode"
            )
        if mode == APPEND and name is not None:
            raise InvalidPrimitive(f"join: {APPEND} collects text, no variable {name!r}", param="name")
        stream = self._parent._stream  # noqa: SLF001 - parent and group are one thing
        if mode == APPEND and any(state.open_role != self._parent.open_role for state in self._states):
            raise InvalidPrimitive(
                f"join: {APPEND} needs branches that leave turns open or closed as the parent does"
            )
        number = stream.join(self._number, [state._stream for state in self._states], name, mode)  # noqa: SLF001
        if mode == GATHER:
            self._parent._names.update({name} if name else set().union(*(s._names for s in self._states)))  # noqa: SLF001
        return Joined(stream, number)


class FinishedState:
    """What a program leaves behind: plain values, nothing waits.

    Attributes:
        program: its name.
        value: what the body returned.
        seed: what it ran with; `run(seed=…)` repeats it.
    """

    def __init__(self, outcome: Outcome, program: str, value: Any = None, seed: int = 0) -> None:
        self._outcome = outcome
        self.program, self.value, self.seed = program, value, seed

    def __repr__(self) -> str:
        return f"<FinishedState of {self.program}: {', '.join(self.variables) or 'no variables'}>"

    def __getitem__(self, name: str) -> Any:
        """Value of a variable; `UnknownVariable` if nothing defined it."""
        return self._outcome.variable(name, self.program)

    def __contains__(self, name: object) -> bool:
        return name in self._outcome.variables

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcome.variables)

    @property
    def variables(self) -> dict[str, Any]:
        """All of them."""
        return dict(self._outcome.variables)

    @property
    def usage(self) -> Usage:
        """Tokens and calls of the program, branches included."""
        return self._outcome.total

    @property
    def branches(self) -> list[list[FinishedState]]:
        """The branches of each fork, in order."""
        return [
            [FinishedState(b, self.program, seed=self.seed) for b in group]
            for group in self._outcome.branches.values()
        ]

    def text(self) -> str:
        """The prompt as the model saw it, with everything generated."""
        return self._outcome.text

    def messages(self) -> list[dict[str, str]]:
        """The chat turns."""
        return as_messages(self._outcome)

    def meta(self, name: str) -> dict[str, Any]:
        """What the node reported about a variable: finish reason, tokens, scores."""
        if name not in self._outcome.meta:
            raise unknown(name, self.program, self._outcome.stream, self._outcome.meta).error()
        return self._outcome.meta[name]


def as_messages(outcome: Outcome) -> list[dict[str, str]]:
    """Chat turns as clients of chat APIs write them."""
    return [{"role": role, "content": content} for role, content in outcome.turns]
