"""Programs are tested with a real model's answers that are paid for once: `record` writes them to a file, `replay` answers from it.

Both are backends, whose streams are in a kernel of their own. The form of the file is `lang.backends.recording`'s, who gets which answer
`lang.backends.replaying`'s.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import get_args

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.programs import runtime
from sgl_actors.actors.programs.local_kernel import LocalKernel, open_kernel
from sgl_actors.actors.programs.program import LiveRun
from sgl_actors.actors.programs.recording_client import RecordClient, ReplayClient
from sgl_actors.actors.programs.runtime import Backend, NodeHandle, Opened
from sgl_actors.actors.programs.tape import Mode, Tape, check_path, read
from sgl_actors.errors import ConfigError
from sgl_actors.lang.backends.recording import VERSION, Header
from sgl_actors.lang.backends.replaying import Answers
from sgl_actors.lang.protocols import Client, RunOptions


class _Through:
    """A `NodeHandle` of a kernel of our own, whose streams ask another backend."""

    def __init__(self, kernel: LocalKernel, backend: Backend, opened: Opened) -> None:
        self._kernel, self._backend, self._opened = kernel, backend, opened
        self.context = kernel.context
        self.close = kernel.close

    @property
    def gone(self) -> bool:
        """Whether the other backend has been closed, or its node has ended."""
        return self._opened.handle.gone or self._backend._opened is not self._opened  # noqa: SLF001 - of our own base class


class Recorder(Backend):
    """Runs programs where another backend does, and writes down what the model answers. Made by `record`."""

    def __init__(self, path: str, backend: Backend, mode: Mode, *, pieces: bool) -> None:
        self.backend = backend
        tape = Tape(path, mode, pieces=pieces)

        async def opens() -> tuple[NodeHandle, Callable[[Context], Client], bool]:
            opened = await backend.open()
            client = opened.client
            of = client.api.title if client.api else type(backend).__name__
            tape.begin(Header(VERSION, of, sorted(client.takes), client.api))
            kernel = await open_kernel()
            return _Through(kernel, backend, opened), lambda _context: RecordClient(client, tape), False

        super().__init__(opens, f"Recording to {path}")

    async def start(self, name: str, options: RunOptions) -> LiveRun:
        """See `Runtime.start`."""
        run = await super().start(name, options)
        opened = self._opened
        if opened is not None and isinstance(opened.client, RecordClient):
            opened.client.began(run.setup.program, alone=opened.runs == 1)
        return run


class Replay(Backend):
    """Answers from a recording. Made by `replay`."""

    def __init__(self, path: str, *, repeat: bool) -> None:
        header, lines = read(path)
        answers, lock = Answers(lines, repeat=repeat), threading.Lock()

        async def opens() -> tuple[NodeHandle, Callable[[Context], Client], bool]:
            return await open_kernel(), lambda _context: ReplayClient(header, answers, lock), False

        super().__init__(opens, f"Replay of {path}")


def record(
    path: str | os.PathLike[str], backend: Backend | None = None, *, mode: Mode = "new", pieces: bool = False
) -> Recorder:
    """Run programs on a backend, and write what its model answers to a file of JSON lines, for `replay`.

    What programs see is what they would see without: streams, errors, usage. An answer is written when it is complete, an error when it reaches the program;
    what was cancelled is not written. No key is, but prompts and answers are.

    Args:
        path: the file.
        backend: which; by default the one that programs run on by now. It stays open when this one is closed.
        mode: of a file that is there already: "new" refuses it, "append" adds to it, "replace" begins anew on first use.
        pieces: keep the pieces in which texts came, so that they are streamed in the same ones again.

    Raises:
        ConfigError: the file is there, is damaged, or cannot be written; or that is no backend.

    Example:
        >>> @function
        ... async def capital(s, country):
        ...     s += f"The capital of {country} is " + gen("answer")
        >>> async with record("capital.jsonl", Mock(["Paris"])):
        ...     state = await capital.run("France")
        >>> state = await capital.run("France", backend=replay("capital.jsonl"))
        >>> state["answer"]
        'Paris'
    """
    where = os.fspath(path)
    found = _current() if backend is None else backend
    if not isinstance(found, Backend):
        raise ConfigError(
            f"record: {found!r:.80} is no backend; sgl.OpenAI(MODEL), sgl.connect(URL), sgl.Node(FILE) and sgl.Mock(SCRIPT) are"
        )
    if mode not in get_args(Mode):
        raise ConfigError(f"record: mode {mode!r:.80} is none of 'new', 'append' and 'replace'")
    check_path(where, mode)
    return Recorder(where, found, mode, pieces=pieces)


def replay(path: str | os.PathLike[str], *, repeat: bool = False) -> Replay:
    """A backend that answers from a file that `record` has written: no model, no network, no vendor's SDK.

    A request is known by its prompt, its sampling arguments (but for the seed), its constraint, tools and images. Equal ones get their answers
    in the order in which they were recorded, each once. Usage and costs are those that were recorded.

    Args:
        path: the file.
        repeat: when the answers to a request are used up, give the last one again.

    Raises:
        ConfigError: there is no such file, or it is damaged; the message names the line. A program that asks for what was not recorded fails with
            `NotRecorded`.

    Example:
        >>> @function
        ... async def capital(s, country):
        ...     s += f"The capital of {country} is " + gen("answer")
        >>> state = await capital.run("France", backend=record("capital.jsonl", Mock(["Paris"])))
        >>> await capital.run("Spain", backend=replay("capital.jsonl"))
        Traceback (most recent call last):
        NotRecorded: program 'capital', variable 'answer', ...recorded ...'The capital of France is ', asked ...'The capital of Spain is '; ...
    """
    return Replay(os.fspath(path), repeat=repeat)


def _current() -> Backend:
    """Where programs run that are told nothing."""
    stack = runtime._stack  # noqa: SLF001 - it has no other reader outside of its module
    return stack[-1] if stack else runtime.default.embedded
