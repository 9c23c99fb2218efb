"""A program as data: the nodes of each of its streams; and the recorder that makes one of a body.

Bodies that look at a value (`await s["name"]`) to decide how to go on have no graph; what only passes values on
(`s += s["name"]`, joins) does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from sgl_actors.lang.errors import ProgramError, StreamEnded
from sgl_actors.lang.ir import AnyNode, Fork, Join, outline
from sgl_actors.lang.results import Outcome, shorten

if TYPE_CHECKING:
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


async def record(program: Program) -> Graph:
    """Run the body against a recorder.

    Raises:
        NotRecordable: the body awaited a variable.
        ProgramError: what the body did wrong otherwise.
    """
    recorder = Recorder()
    await program.run(backend=recorder)
    return Graph([StreamNodes(s.path, s.nodes) for s in recorder.streams])


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

    def append(self, nodes: Sequence[AnyNode]) -> int:
        """See `Stream.append`."""
        if self._joined:
            raise StreamEnded(f"branch {self.path} has been joined")
        self.nodes += nodes
        return len(self.nodes) - len(nodes)

    def fork(self, count: int) -> tuple[int, Sequence[RecordedStream]]:
        """See `Stream.fork`."""
        number = self.append((Fork(count),))
        first, self._children = self._children, self._children + count
        return number, [RecordedStream(self._recorder, f"{self.path}.{first + i}") for i in range(count)]

    def join(self, fork: int, children: Sequence[Any], name: str | None, mode: str) -> int:
        """See `Stream.join`."""
        for child in children:
            child._joined = True  # noqa: SLF001 - the same class
        return self.append((Join(fork, name, mode),))

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

    async def pin(self, text: str, ttl: float, name: str) -> NoReturn:  # noqa: ARG002
        """Has no answer."""
        raise NotRecordable(f"the body pins what stream {self.path} holds")

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

    def __init__(self) -> None:
        self.streams: list[RecordedStream] = []
        self.root = RecordedStream(self, "0")

    async def start(self, name: str, options: RunOptions) -> Recorder:  # noqa: ARG002
        """See `Runtime.start`."""
        return self

    async def finish(self) -> Outcome:
        """See `Run.finish`."""
        return Outcome("0")

    async def close(self) -> None:
        """See `Run.close`."""
