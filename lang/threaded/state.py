"""`s` of a body that is a plain function: what is read blocks, what is added does not. The names and meanings are SGLang's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self, cast

from sgl_actors.errors import UnknownVariable
from sgl_actors.lang.arguments import check_name
from sgl_actors.lang.graph import NotRecordable
from sgl_actors.lang.group import ProgramGroup as LoopGroup
from sgl_actors.lang.ir import (
    GATHER,
    JOIN_MODES,
    Expression,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    as_nodes,
    defines,
)
from sgl_actors.lang.state import ProgramState as LoopState
from sgl_actors.lang.threaded.errors import NoExpression
from sgl_actors.lang.threaded.running import Running

LOGPROBS = (
    "input_token_logprobs",
    "output_token_logprobs",
    "unconditional_token_logprobs",
    "output_top_logprobs",
)
"""Entries of `meta` that list [log probability, token id]; SGLang has the token's text as a third."""


class ProgramState:
    """A prompt that is being written, and the variables in it.

    `s += expression` returns at once; `s["name"]` blocks until the variable has its value, and raises when there will be none. What is set with
    `s["name"] = value` may be any object, and stays the same object.

    Attributes:
        ret_value: what the body returned.

    Example:
        >>> @function
        ... def capital(s, country):
        ...     s += user(f"The capital of {country}?") + assistant(gen("city"))
        ...     return s["city"].upper()
        >>> state = capital.run("France")
        >>> state["city"], state.ret_value
        ('Paris', 'PARIS')
    """

    __iter__: ClassVar[None] = None

    def __init__(
        self,
        running: Running | None,
        inner: LoopState,
        names: dict[str, None] | None = None,
        values: dict[str, Any] | None = None,
    ) -> None:
        self.ret_value: Any = None
        self._program, self._inner = running, inner
        self._names = dict(names or {})
        self._values = dict(values or {})
        self._own: dict[str, None] = {}

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def running(self) -> Running:
        """The run it belongs to; `NotRecordable` if there is none, because the program is only recorded."""
        if self._program is None:
            raise NotRecordable("the body reads what is not known before it is run")
        return self._program

    def __iadd__(self, expression: object) -> Self:
        if expression is None:
            raise NoExpression("s += None")
        nodes = as_nodes(expression)
        if self._program is not None:
            nodes = tuple(map(self._program.defaults.fill, nodes))
        self._inner += Expression(nodes)
        for node in nodes:
            for name in defines(node):
                self._values.pop(name, None)
                self._names[name] = self._own[name] = None
        if self._program is not None and self._program.inline:
            self._program.read(self._inner.sync)
        return self

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: object) -> bool:
        """Whether something added or set so far defines that variable; does not wait."""
        return name in self._names

    def get_var(self, name: str) -> Any:
        """Value of a variable; blocks until it is there.

        Raises:
            NoVariable: nothing added so far defines it. A `KeyError`, too.
            NoValue: what should have defined it failed. A `KeyError`, too.
        """
        if name in self._values:
            return self._values[name]
        ref = self._inner[name]
        return ref if self._program is None else self._program.read(lambda: ref)

    def set_var(self, name: str, value: Any) -> None:
        """Give a variable a value, in this state and those forked from it later."""
        check_name("s[…] = …", name)
        self._values[name] = value
        self._names[name] = self._own[name] = None

    def get_meta_info(self, name: str) -> dict[str, Any] | None:
        """What the node reported about a variable: tokens, finish reason, log probabilities; None if there is nothing."""
        try:
            return meta_info(self.running.read(lambda: self._inner.meta(name)))
        except UnknownVariable:
            return None

    def text(self) -> str:
        """The prompt as the model sees it, once everything added so far is done; raises if it failed."""
        return self.running.read(self._inner.text)

    def messages(self) -> list[dict[str, Any]]:
        """The turns that are closed, once everything added so far is done; raises if it failed."""
        closed = slice(None if self._inner.open_role is None else -1)
        turns = self.running.read(self._inner.messages)[closed]
        return [{**turn, "content": _stripped(turn["content"])} for turn in turns]

    def sync(self) -> None:
        """Wait until everything added so far is done or has failed; which, `error` tells."""
        self.running.failure(self._inner.error)

    def error(self) -> BaseException | None:
        """Why it failed, once everything added so far is done or given up; None if it did not."""
        return self.running.failure(self._inner.error)

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """A variable, or the whole prompt, as it is written; without `run(stream=True)` all of it at once."""
        if not self.running.stream:
            yield self.text() if var_name is None else self.get_var(var_name)
            return
        try:
            yield from self.running.loop.iterate(self.running.follow(self._inner, var_name))
        except KeyboardInterrupt:
            self.running.abort()
            raise

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """The same for a caller with an event loop; with `return_meta_data`, pairs of text and what the node has reported by then."""
        running, meta = self.running, return_meta_data and var_name is not None
        items = running.follow(self._inner, var_name, meta=meta) if running.stream else self._whole(var_name)
        async for item in running.loop.follow(items):
            yield item

    async def _whole(self, var_name: str | None) -> AsyncGenerator[Any, None]:
        if var_name in self._values:
            yield self._values[var_name]
        else:
            yield await (self._inner.text() if var_name is None else self._inner[var_name])

    def system(self, expr: object = None) -> Any:
        """A system turn: with an expression it is added; without, ``with s.system():`` has what is added inside be the turn."""
        return self._turn("system", expr)

    def user(self, expr: object = None) -> Any:
        """See `system`."""
        return self._turn("user", expr)

    def assistant(self, expr: object = None) -> Any:
        """See `system`."""
        return self._turn("assistant", expr)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """All that is added inside is the text of variable `name`, marks of turns included."""
        check_name("var_scope", name)
        self += ScopeBegin(name)
        yield
        self += ScopeEnd(name)

    def fork(self, size: int = 1, position_ids_offset: object = None) -> ProgramStateGroup:  # noqa: ARG002
        """Begin `size` states that start with all this one holds. `position_ids_offset` is taken and without effect."""
        group = self._inner.fork(size)
        return ProgramStateGroup(
            [ProgramState(self._program, one, self._names, self._values) for one in group], self, group
        )

    @contextmanager
    def copy(self, position_ids_offset: object = None) -> Iterator[ProgramState]:  # noqa: ARG002
        """A branch to try something in; at the end its new variables are this state's, as lists of one."""
        group = self.fork(1)
        yield group[0]
        group.join()

    def _turn(self, role: str, expr: object) -> Any:
        if expr is None:
            return self._open_turn(role)
        turn = Expression((RoleBegin(role), *as_nodes(expr), RoleEnd(role)))
        self += turn
        return turn

    @contextmanager
    def _open_turn(self, role: str) -> Iterator[None]:
        self += RoleBegin(role)
        yield
        self += RoleEnd(role)


class ProgramStateGroup:
    """The branches of one fork. Iterate or index them; `group += x` adds to all of them.

    Example:
        >>> @function
        ... def cities(s):
        ...     forks = s.fork(2)
        ...     forks += gen("city")
        ...     forks.join()
        >>> cities.run()["city"]
        ['Paris', 'Paris']
    """

    def __init__(self, states: list[ProgramState], src_state: ProgramState, inner: LoopGroup) -> None:
        self.states, self.src_state = states, src_state
        self._inner = inner

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __getitem__(self, i: int) -> ProgramState:
        return self.states[i]

    def __setitem__(self, i: int, value: ProgramState) -> None:
        if self.states[i] is not value:
            raise NoExpression("a branch cannot be replaced; `group[i] += …` adds to it")

    def __iadd__(self, other: object) -> Self:
        """An expression for all, a list with one for each, or a function of the index."""
        items: Sequence[object]
        if isinstance(other, list | tuple):
            if len(other) != len(self):
                raise NoExpression(f"group +=: {len(other)} expressions for {len(self)} branches")
            items = other
        else:
            call = cast("Callable[[int], object]", other)
            items = [call(index) if callable(other) else other for index in range(len(self))]
        for state, item in zip(self.states, items, strict=True):
            state += item  # noqa: PLW2901 - adds to the branch in place
        return self

    def join(self, mode: str = GATHER) -> None:
        """Block until the branches are done; they take nothing more.

        Args:
            mode: "gather_variable": each variable that the parent does not have becomes a list there, of the values of those branches that have it.
                "concate_and_append": what each branch added to its prompt is added to the parent's.

        Raises:
            NoValue: a branch failed.
            NoExpression: there is no such mode.
        """
        if mode not in JOIN_MODES:
            raise NoExpression(
                f"join: mode is one of {', '.join(JOIN_MODES)}, not {mode!r:.80}", param="mode"
            )
        parent, program = self.src_state, self.src_state._program  # noqa: SLF001 - parent and group are one thing
        held = dict(parent._names)  # noqa: SLF001
        if mode == GATHER and program is not None:
            for name in held.keys() & {name for state in self.states for name in state._own}:  # noqa: SLF001
                parent._values.setdefault(name, parent.get_var(name))  # noqa: SLF001 - the branches' values are not to take its place
        joined = self._inner.join(mode=mode)
        if program is not None:
            program.read(lambda: joined)
        if mode == GATHER:
            new = {name: None for state in self.states for name in state._own if name not in held}  # noqa: SLF001
            parent._names.update(new)  # noqa: SLF001
            parent._own.update(new)  # noqa: SLF001
            if program is not None:
                parent._values.update(program.read(lambda: self._gather(new)))  # noqa: SLF001

    async def _gather(self, names: dict[str, None]) -> dict[str, list[Any]]:
        """What the branches, which have been joined, have of those variables."""
        gathered: dict[str, list[Any]] = {}
        for state in self.states:
            for name in [name for name in state._own if name in names]:  # noqa: SLF001
                values, inner = state._values, state._inner  # noqa: SLF001
                gathered.setdefault(name, []).append(values[name] if name in values else await inner[name])
        return gathered


def meta_info(meta: dict[str, Any]) -> dict[str, Any]:
    """What the node reported, with log probabilities as SGLang lists them: [log probability, token id, text], the text None."""
    return {name: _triples(value) if name in LOGPROBS else value for name, value in meta.items()}


def _triples(value: Any) -> Any:
    if value and isinstance(value[0], list):
        return [_triples(item) for item in value]
    return [*value, None] if value else value


def _stripped(content: Any) -> Any:
    return content.lstrip() if isinstance(content, str) else content
