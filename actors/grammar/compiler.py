"""The process that compiles (`main`), told by `protocol` on its standard input, speaking on its standard output.

It may be killed at any time and nothing is lost with it. A job that takes too much CPU time ends it by SIGPROF, whose timer counts the time of all of its
threads; one to which memory is refused ends it by an exit code, or by SIGABRT where the compiler is not Python. It ends with its
parent: by the end of its input, and at once, if the operating system can (`actors.child`), also in the middle of a job.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import msgspec

from sgl_actors.actors.grammar.protocol import (
    LENGTH,
    OUT_OF_MEMORY,
    Answer,
    Broken,
    Job,
    Ready,
    Refused,
    Result,
    SetUp,
    frame,
)
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import Constraint

T = TypeVar("T")


class Output(Protocol):
    """What an engine makes of a constraint."""

    @property
    def engine(self) -> str:
        """See `messages.Compiled`."""

    @property
    def automaton(self) -> bytes:
        """See `messages.Compiled`."""

    @property
    def why(self) -> str:
        """See `messages.Compiled`."""


class Engine(Protocol):
    """What this process needs of `engines.Engines`."""

    def compile(self, constraint: Constraint) -> Output:
        """Raises `InvalidRequest`."""


MakeEngine = Callable[[str, Sequence[int], int, str], Engine]
"""From the tokenizer's JSON, end tokens, ids of a mask, and the engine's name."""


def engines(tokenizer: str, eos_ids: Sequence[int], size: int, engine: str) -> Engine:
    """The real ones, which take half a second to import and set up. A vocabulary that they cannot use is each constraint's error."""
    from sgl_actors.lang.constraints.engines import Engines

    both = Engines(tokenizer, eos_ids, size, engine)
    with suppress(InvalidRequest):
        both.set_up()
    return both


def main(make: MakeEngine = engines) -> None:
    """Serve until the input ends."""
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    told = _read(source, SetUp)
    if told is None:
        return
    engine = make(told.tokenizer, told.eos_ids, told.size, told.engine)
    os.nice(told.nice)  # from here on; somebody waits for it to be ready
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _address_space() + told.memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _write(answers, Ready())
    while (job := _read(source, Job)) is not None:
        _write(answers, _compile(engine, job))


def _compile(engine: Engine, job: Job) -> Answer:
    kind = job.constraint.kind
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, job.seconds)
    try:
        output = engine.compile(job.constraint)
        return Result(output.engine, output.automaton, output.why, time.process_time() - began)
    except InvalidRequest as error:
        return Refused(error.message, error.param)
    except RecursionError:
        return Refused(f"{kind}: it is nested too deeply; make it flatter", kind)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not look like a crash without a reason
        return Broken(f"{type(error).__name__}: {error}"[:300], traceback.format_exc()[-4000:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _address_space() -> int:
    """Bytes of address space in use; 0 where the kernel does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _read(source: BinaryIO, kind: type[T]) -> T | None:
    """The next message; None at the end of the input."""
    head = source.read(LENGTH)
    body = source.read(int.from_bytes(head, "little")) if len(head) == LENGTH else b""
    return msgspec.msgpack.decode(body, type=kind) if body else None


def _write(answers: BinaryIO, answer: Answer) -> None:
    answers.write(frame(answer))
    answers.flush()
