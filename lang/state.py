"""What a program's body writes to (`ProgramState`)."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, ClassVar, NoReturn, ParamSpec, Self, TypeVar, cast, overload

import msgspec

from sgl_actors.errors import SglActorsError, UnknownVariable
from sgl_actors.lang.arguments import check_name, check_pin, whole
from sgl_actors.lang.caller import caller
from sgl_actors.lang.durable import plain
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.finished import as_messages, variable_name
from sgl_actors.lang.group import ProgramGroup
from sgl_actors.lang.ir import (
    AnyNode,
    Expression,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    SetVariable,
    Slot,
    Variable,
    as_nodes,
    check_text,
    defines,
)
from sgl_actors.lang.pending import Ref
from sgl_actors.lang.protocols import Stream
from sgl_actors.lang.results import Usage
from sgl_actors.lang.trace import Prices, Trace

P = ParamSpec("P")
T = TypeVar("T")

MAX_BRANCHES = 1 << 16
"""Most branches of one fork."""


class ProgramState:
    """`s` of a body: a prompt that is being written and the variables in it.

    `s += expression` adds to it and never waits; what is generated is done in order, in the background.
    `await s["name"]` waits for one variable, `await s.text()` for everything added so far.

    Example:
        >>> @function
        ... async def capital(s, country):
        ...     s += user(f"The capital of {country}?") + assistant(gen("city"))
        ...     return [turn["role"] for turn in await s.messages()], await s["city"]
        >>> (await capital.run("France")).value
        (['user', 'assistant'], 'Paris')
    """

    __iter__: ClassVar[None] = None

    def __init__(
        self, stream: Stream, *, names: frozenset[str] = frozenset(), role: str | None = None
    ) -> None:
        self._stream = stream
        self._names = set(names)
        self._role = role
        self._scopes: list[str] = []

    def __repr__(self) -> str:
        return f"<ProgramState {self._stream.path}: {self._stream.length} nodes>"

    def __iadd__(self, expression: object) -> Self:
        nodes = tuple(self._own(node) for node in as_nodes(expression))
        role = self._check_roles(nodes)
        self._stream.append(nodes, caller())
        self._role = role
        for node in nodes:
            self._names.update(defines(node))
        return self

    def __add__(self, other: object) -> NoReturn:
        raise InvalidPrimitive("s + …: a state is added to in place; write `s += …`")

    @overload
    def __getitem__(self, name: Slot[T]) -> Ref[T]: ...
    @overload
    def __getitem__(self, name: str) -> Ref[Any]: ...
    def __getitem__(self, name: str | Slot[Any]) -> Ref[Any]:
        return Ref(self._stream, variable_name(name))

    def __setitem__(self, name: str, value: object) -> None:
        check_name("s[…] = …", name)
        try:
            msgspec.msgpack.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidPrimitive(
                f"s[{name!r}]: a variable holds plain data, not {type(value).__name__}: {error}"
            ) from None
        self._stream.append((SetVariable(name, value),), caller())
        self._names.add(name)

    set_var = __setitem__

    def __contains__(self, name: object) -> bool:
        """Whether something added so far defines that variable; does not wait."""
        return name in self._names

    @property
    def open_role(self) -> str | None:
        """Role of the turn that is being written, None outside."""
        return self._role

    def role(self, name: str, expression: object = None) -> Turn:
        """A turn of the chat: with an expression it is added; without, ``with s.role("user"):`` has what is added inside be the turn."""
        return Turn(self, name, expression)

    def system(self, expression: object = None) -> Turn:
        """See `role`."""
        return Turn(self, "system", expression)

    def user(self, expression: object = None) -> Turn:
        """See `role`."""
        return Turn(self, "user", expression)

    def assistant(self, expression: object = None) -> Turn:
        """See `role`."""
        return Turn(self, "assistant", expression)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """All that is added inside is the text of variable `name`, marks of turns included."""
        check_name("var_scope", name)
        if name in self._scopes:
            raise InvalidPrimitive(f"var_scope({name!r}) inside itself", param="name")
        self._stream.append((ScopeBegin(name),), caller())
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.remove(name)
        self += ScopeEnd(name)

    def fork(self, count: int = 1) -> ProgramGroup:
        """Begin `count` states that start with all this one holds, each a stream of its own.

        The common prefix is computed once, before the first of them starts.
        """
        count = whole("fork", "count", count, 1, MAX_BRANCHES)
        number, children = self._stream.fork(count, caller())
        states = [ProgramState(child, names=frozenset(self._names), role=self._role) for child in children]
        return ProgramGroup(self, number, states)

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A branch to try something in: at the end it is joined, and the variables it has set are this state's, as lists of one."""
        group = self.fork(1)
        try:
            yield group[0]
        except BaseException:
            group[0].cancel("the block of its copy raised")
            raise
        group.join()

    def cancel(self, reason: str = "") -> None:
        """End this state and those forked from it: what they ask of the model is cancelled, they take nothing more.

        The rest of the program goes on. What it has computed stays in the cache. Reading a variable it has not reached raises
        `BranchCancelled`.
        """
        check_text("cancel", reason, "reason")
        self._stream.cancel(reason)

    async def text(self) -> str:
        """The prompt as the model sees it, once everything added so far is done."""
        return (await self._stream.snapshot()).text

    async def messages(self) -> list[dict[str, Any]]:
        """The chat turns as ``{"role": …, "content": …}``, once everything added so far is done; with images, contents are lists of parts."""
        return as_messages(await self._stream.snapshot())

    async def meta(self, name: str | Slot[Any]) -> dict[str, Any]:
        """What the node reported about a variable: finish reason, tokens, scores; waits for it."""
        return await self._stream.meta(variable_name(name), self._stream.length)

    get_meta_info = meta

    async def error(self) -> SglActorsError | None:
        """Why it failed, once everything added so far is done or given up; None if it did not. Whoever asks has handled it."""
        failure = await self._stream.failed()
        return None if failure is None else failure.error()

    async def usage(self) -> Usage:
        """Tokens and calls of this state and all forked from it, once everything added so far is done or has failed; never raises."""
        return await self._stream.usage()

    async def trace(self, prices: Prices | None = None) -> Trace:
        """What the prompt is made of so far, and what it cost."""
        return Trace(await self._stream.snapshot(), f"branch {self._stream.path}", prices=prices)

    async def text_async_iter(
        self, var: str | None = None, return_meta_data: bool = False
    ) -> AsyncGenerator[Any, None]:
        """The next variable `var` while it is being written, or the whole prompt as it grows until this state is done with.

        What defines `var` has to be added first. With `return_meta_data`, pairs of text and what the node reported: nothing ({}) until
        the last pair, whose text is "".
        """
        if var is not None:
            check_name("text_iter", var)
            if var not in self._names:
                raise UnknownVariable(
                    f"text_iter({var!r}): nothing added so far defines it; there is: {', '.join(sorted(self._names)) or 'nothing'}"
                )
        async with aclosing(self.follow(var, return_meta_data)) as pieces:
            async for piece in pieces:
                yield piece

    async def follow(
        self, var: str | None = None, return_meta_data: bool = False
    ) -> AsyncGenerator[Any, None]:
        """As `text_async_iter`, but what defines `var` may also be added later, by another task or thread."""
        async with aclosing(cast("Any", self._stream.listen(var or ""))) as pieces:
            async for piece in pieces:
                yield (piece, {}) if return_meta_data else piece
        if return_meta_data:
            yield "", await self.meta(var) if var else {}

    text_iter = text_async_iter

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

    @overload
    async def once(
        self, name: str, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def once(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def once(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What `function(*args, **kwargs)` returns, which may be awaitable: the clock, a random number, an answer of another service.

        A durable program records it under `name` (several calls of one name are told apart by their order on this state), and when it is resumed gets
        the recorded value. The function is called at least once: if the program ends between the call and the record, it is called again. What it
        raises is not recorded.

        Args:
            name: of the value in the journal.
            function: returns plain data (None, bool, int, float, str, bytes, lists, dicts), in programs that are not durable, too.
            args: of the function.
            kwargs: of the function.

        Example:
            >>> import time
            >>> @function
            ... async def greet(s):
            ...     hour = await s.once("hour", lambda: time.localtime().tm_hour)
            ...     s += f"It is {hour} o'clock." + gen("greeting")
            >>> state = await greet.run()
        """
        check_name("once", name)

        async def make() -> Any:
            made = function(*args, **kwargs)
            value = await made if inspect.isawaitable(made) else made
            plain(f"once({name!r})", value)
            return value

        return await self._stream.once(name, make)

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


class Turn:
    """A turn that was added, or that a `with` block adds to. A block that raises leaves it open."""

    def __init__(self, state: ProgramState, role: str, expression: object) -> None:
        check_text("role", role, "name")
        self._state, self._role = state, role
        self._added = expression is not None
        if self._added:
            state += Expression((RoleBegin(role), *as_nodes(expression), RoleEnd(role)))

    def __enter__(self) -> None:
        if self._added:
            raise InvalidPrimitive(
                f"s.{self._role}(…) has been added; `with s.{self._role}():` takes no argument"
            )
        self._state += RoleBegin(self._role)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._state += RoleEnd(self._role)
