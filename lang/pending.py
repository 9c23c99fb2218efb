"""What has no value yet: variables and joins that are to be awaited."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, NoReturn, TypeVar

from sgl_actors.lang.errors import UnresolvedVariable
from sgl_actors.lang.ir import AnyNode, Composable, Variable
from sgl_actors.lang.protocols import Stream

T_co = TypeVar("T_co", covariant=True)


class Pending:
    """Something that has no value yet. `await` gives it; every use as a value raises `UnresolvedVariable`."""

    __slots__ = ("_way_out", "_what")

    def __init__(self, what: str, way_out: str | None = None) -> None:
        self._what = what
        self._way_out = f"; write `await {what}`" if way_out is None else way_out

    def __repr__(self) -> str:
        return f"<{self._what}: not awaited>"

    def _refuse(self, use: str) -> NoReturn:
        raise UnresolvedVariable(f"{use} of {self._what} before it has a value{self._way_out}")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # what copy, inspect, IPython and so on look for
            raise AttributeError(name)
        self._refuse(f".{name}")

    def __int__(self) -> NoReturn:
        self._refuse("int()")

    def __float__(self) -> NoReturn:
        self._refuse("float()")

    def __mul__(self, other: object) -> NoReturn:
        self._refuse("*")

    def __hash__(self) -> NoReturn:  # noqa: PLE0309
        self._refuse("hash()")

    def __index__(self) -> NoReturn:  # noqa: PLE0305
        self._refuse("use as an index")

    def __sub__(self, other: object) -> NoReturn:
        self._refuse("-")

    def __truediv__(self, other: object) -> NoReturn:
        self._refuse("/")

    def __mod__(self, other: object) -> NoReturn:
        self._refuse("%")

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


class Ref(Pending, Composable, Generic[T_co]):
    """`s["name"]` in a body: await it for the value, or put it into a prompt, where the stream waits for it.

    Example:
        >>> @function
        ... async def expand(s):
        ...     s += "Topic: " + gen("topic")
        ...     s += ". Expand: " + s["topic"]
        ...     return await s["topic"]
        >>> state = await expand.run(backend=Mock(["bees"]))
        >>> state.value, state.text()
        ('bees', 'Topic: bees. Expand: bees')
    """

    __slots__ = ("_name", "_position", "_stream")

    def __init__(self, stream: Stream, name: str) -> None:
        Pending.__init__(self, f's["{name}"]')
        self._stream, self._name, self._position = stream, name, stream.length

    @property
    def nodes(self) -> tuple[AnyNode, ...]:
        """As part of an expression."""
        return (Variable(self._name, self._stream.path, self._position),)

    def __await__(self) -> Generator[Any, None, T_co]:
        return self._stream.read(self._name, self._position).__await__()


class Joined(Pending):
    """`group.join(…)`: the join happens in any case; await it for what it collected."""

    __slots__ = ("_number", "_stream")

    def __init__(self, stream: Stream, number: int) -> None:
        super().__init__("group.join(…)")
        self._stream, self._number = stream, number

    def __await__(self) -> Generator[Any, None, Any]:
        return self._stream.result(self._number).__await__()
