"""A program as data: the nodes of each of its streams; and the recorder that makes one of a body.

Bodies that look at a value (`await s["name"]`) to decide how to go on have no graph; what only passes values on
(`s += s["name"]`, joins) does.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from sgl_actors.lang.errors import BodyFailed, ProgramError, StreamEnded, UnresolvedVariable
from sgl_actors.lang.ir import (
    AnyNode,
    Argument,
    Composable,
    ConstantText,
    Fork,
    Gen,
    Join,
    RoleBegin,
    RoleEnd,
    Select,
    outline,
)
from sgl_actors.lang.pending import Pending
from sgl_actors.lang.results import Outcome, Usage, shorten

_MARK: Final = "\ue000\ue001\ue000"
"""Stands around an open argument's name in text; code points of Unicode's private use."""

if TYPE_CHECKING:
    from sgl_actors.errors import SglActorsError
    from sgl_actors.lang.function import Program
    from sgl_actors.lang.protocols import RunOptions


class StreamNodes(msgspec.Struct, frozen=True, array_like=True):
    """What one stream does. The children of a stream's forks are numbered through: "0.0", "0.1" and so on."""

    path: str
    nodes: list[AnyNode]


class Graph(msgspec.Struct, frozen=True, array_like=True):
    """All streams of a program; the root "0" is the first, parents stand before their children."""

    streams: list[StreamNodes]


class NotRecordable(ProgramError):
    """The body waits for a value, so what it does next is not known beforehand. Run it as a program instead."""

    code = "not_recordable"


class Open(Pending, Composable):
    """An argument that was not given. It can stand in a prompt, also through an f-string; nothing else is known of it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        super().__init__(f"argument {name!r}", "; it is not given")
        self._name = name

    @property
    def nodes(self) -> tuple[AnyNode, ...]:
        """As part of an expression."""
        return (Argument(self._name),)

    def __format__(self, spec: str) -> str:  # type: ignore[override]  # it has a text, if no value
        return f"{_MARK}{self._name}{_MARK}" if not spec else self._refuse("formatting")

    def __str__(self) -> str:  # type: ignore[override]
        return format(self)


def opened(nodes: Sequence[AnyNode]) -> list[AnyNode]:
    """Nodes in which the marks that open arguments leave in texts have become nodes of their own."""
    found: list[AnyNode] = []
    for node in nodes:
        if isinstance(node, ConstantText) and _MARK in node.text:
            for index, piece in enumerate(node.text.split(_MARK)):
                if piece:
                    found.append(Argument(piece) if index % 2 else ConstantText(piece))
        else:
            found.append(node)
    return found


class Recording(msgspec.Struct, frozen=True):
    """What a body does.

    Attributes:
        graph: its streams.
        ended: why the recording ends before the body's end: what it would have had to know; "" if it is complete.
    """

    graph: Graph
    ended: str = ""

    def prefix(self) -> list[AnyNode]:
        """Nodes that every run begins with."""
        root = self.graph.streams[0].nodes
        fixed = itertools.takewhile(lambda node: isinstance(node, ConstantText | RoleBegin | RoleEnd), root)
        return list(fixed)

    def __str__(self) -> str:
        lines = [f"{one.path}: {' '.join(map(_shown, one.nodes))}" for one in self.graph.streams]
        return "\n".join([*lines, *([f"(ends here: {self.ended})"] if self.ended else [])])


def _shown(node: AnyNode) -> str:
    match node:
        case ConstantText(text=text):
            return repr(text)
        case Fork(count=count):
            return f"fork({count})"
        case Join(name=name):
            return f"join({name or ''})"
        case Gen(name=name) | Select(name=name):
            return f"{type(node).__name__.lower()}({name or ''})"
        case RoleEnd(role=role):
            return f"{{/{role}}}"
        case _:
            return outline(node)


async def sketch(program: Program) -> Recording:
    """Run the body against a recorder to its end, or to where it would have to know a value or an argument that is not given.

    Raises:
        ProgramError: what the body did wrong.
    """
    recorder = Recorder()
    given = program.with_open_arguments(Open)
    ended = ""
    try:
        await given.run(backend=recorder)
    except (NotRecordable, UnresolvedVariable) as error:
        ended = error.message
    except BodyFailed as error:
        if not given.opened:
            raise
        ended = error.message
    graph = Graph([StreamNodes(one.path, opened(one.nodes)) for one in recorder.streams])
    return Recording(graph, ended)


async def record(program: Program) -> Graph:
    """The whole of it.

    Raises:
        NotRecordable: the body waits for a value, or an argument is missing.
    """
    recording = await sketch(program)
    if recording.ended:
        raise NotRecordable(recording.ended)
    return recording.graph


class RecordedStream:
    """A `Stream` that only remembers."""

    def __init__(self, recorder: Recorder, path: str) -> None:
        self.path = path
        self.nodes: list[AnyNode] = []
        self._recorder, self._children, self._joined = recorder, 0, False
        recorder.streams.append(self)

    @property
    def length(self) -> int:
        """See `Stream.length`."""
        return len(self.nodes)

    def append(self, nodes: Sequence[AnyNode], line: str = "") -> int:  # noqa: ARG002
        """See `Stream.append`."""
        if self._joined:
            raise StreamEnded(f"branch {self.path} has been joined")
        self.nodes += nodes
        return len(self.nodes) - len(nodes)

    def cancel(self, reason: str) -> NoReturn:  # noqa: ARG002
        """Depends on what happens."""
        raise NotRecordable(f"the body cancels stream {self.path}")

    def fork(self, count: int, line: str = "") -> tuple[int, Sequence[RecordedStream]]:
        """See `Stream.fork`."""
        number = self.append((Fork(count),), line)
        first, self._children = self._children, self._children + count
        return number, [RecordedStream(self._recorder, f"{self.path}.{first + i}") for i in range(count)]

    def join(self, node: Join, children: Sequence[Any], line: str = "") -> int:
        """See `Stream.join`."""
        for child in children:
            child._joined = True  # noqa: SLF001 - the same class
        return self.append((node,), line)

    async def read(self, name: str, position: int) -> NoReturn:  # noqa: ARG002
        """Has no answer."""
        raise NotRecordable(f"the body awaits variable {name!r} of stream {self.path}")

    meta = read

    async def result(self, number: int) -> Recorded:  # noqa: ARG002
        """Awaiting a join is no harm as long as its result is not used."""
        return Recorded()

    async def snapshot(self) -> NoReturn:
        """Has no answer."""
        raise NotRecordable(f"the body awaits what stream {self.path} holds")

    failed = usage = snapshot

    async def pin(self, text: str, ttl: float, name: str) -> NoReturn:  # noqa: ARG002
        """Has no answer."""
        raise NotRecordable(f"the body pins what stream {self.path} holds")

    async def once(self, name: str, make: Callable[[], Awaitable[Any]]) -> NoReturn:  # noqa: ARG002
        """Has no answer."""
        raise NotRecordable(f"the body asks for {name!r} from outside")

    async def tail(self) -> str:
        """See `Stream.tail`."""
        return shorten("".join(outline(node) for node in self.nodes))

    async def listen(self, name: str) -> AsyncIterator[str]:
        """Has no answer."""
        for _ in ():
            yield ""
        raise NotRecordable(f"variable {name!r} is not there while a graph is recorded")


class Recorded:
    """Stands in for a joined value; every use of it says that there is none."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise NotRecordable("the body uses what a join collected")

    def __iter__(self) -> NoReturn:
        raise NotRecordable("the body uses what a join collected")

    __getitem__ = __len__ = __bool__ = __str__ = __add__ = __radd__ = __iter__


class Recorder:
    """A `Runtime` and `Run` that records instead of running."""

    seed = 0
    usage = Usage()

    def __init__(self) -> None:
        self.streams: list[RecordedStream] = []
        self.root = RecordedStream(self, "0")

    async def start(self, name: str, options: RunOptions) -> Recorder:  # noqa: ARG002
        """See `Runtime.start`."""
        return self

    async def finish(self) -> Outcome:
        """See `Run.finish`."""
        return Outcome("0")

    async def keep(self, outcome: Outcome, value: bytes | None) -> list[str]:  # noqa: ARG002
        """See `Run.keep`."""
        return []

    def failed(self, error: SglActorsError) -> SglActorsError:
        """See `Run.failed`."""
        return error

    async def recall(self, name: str, options: RunOptions) -> None:
        """See `Runtime.recall`."""

    async def close(self) -> None:
        """See `Run.close`."""
