"""The parent's side of the compiling process: start it, give it one job at a time, learn why it died, end it."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import Final, cast

import msgspec

from sgl_actors.actors.child import command
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
from sgl_actors.errors import InvalidRequest, NotReady
from sgl_actors.lang.constraints.constraint import Constraint

MODULE: Final = "sgl_actors.actors.grammar.compiler"
START: Final = 60.0
"""Seconds until it has to be ready."""
SLOWER: Final = 20.0
"""Seconds on the clock that a second of CPU time may take, where a nice process hardly gets any."""
ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""One thread is what it needs."""

_answers = msgspec.msgpack.Decoder(Answer)


class CompilerCrashed(Exception):
    """The process ended in the middle of a job, or the compiler failed. The text goes on after "compiling it".

    Attributes:
        details: for the log.
    """

    def __init__(self, why: str, details: str = "") -> None:
        super().__init__(why)
        self.details = details


class CompilerProcess:
    """One such process. Close it; after `CompilerCrashed` it is of no more use.

    Attributes:
        jobs: how many it has been given.
    """

    def __init__(self, process: Process, memory: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._memory = process, memory
        self._input, self._output = process.stdin, process.stdout
        self.jobs = 0

    def __repr__(self) -> str:
        return f"<CompilerProcess {self.pid} alive={self.alive} jobs={self.jobs}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as is known."""
        return self._process.returncode is None

    @classmethod
    async def start(cls, set_up: SetUp, module: str = MODULE) -> CompilerProcess:
        """Start it and wait until it is ready; `NotReady` if it does not come up."""
        process = await asyncio.create_subprocess_exec(
            *command(module),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=os.environ | ENVIRONMENT,
        )
        compiler = cls(process, set_up.memory)
        try:
            async with asyncio.timeout(START):
                answer = await compiler._ask(set_up)
        except _Ended as ended:
            await compiler.close()
            raise NotReady(f"the process that compiles constraints did not come up {ended}") from None
        except TimeoutError:
            await compiler.close()
            raise NotReady(f"the process that compiles constraints was not ready in {START:g} s") from None
        except BaseException:
            await compiler.close()
            raise
        assert isinstance(answer, Ready)
        return compiler

    async def compile(self, constraint: Constraint, seconds: float) -> Result:
        """Compile within `seconds` of CPU time.

        Raises:
            InvalidRequest: the constraint is wrong in itself.
            CompilerCrashed: the job ended the process.
        """
        self.jobs += 1
        wall = SLOWER * seconds + START
        try:
            async with asyncio.timeout(wall):
                answer = await self._ask(Job(constraint, seconds))
        except _Ended as ended:
            raise CompilerCrashed(self._cause(ended, seconds)) from None
        except TimeoutError:
            raise CompilerCrashed(f"took longer than {wall:g} s") from None
        if isinstance(answer, Refused):
            raise InvalidRequest(answer.message, param=answer.param)
        if isinstance(answer, Broken):
            raise CompilerCrashed("ended in an error of the compiler", f"{answer.error}\n{answer.traceback}")
        assert isinstance(answer, Result)
        return answer

    async def close(self) -> None:
        """End it, whatever it does."""
        self._input.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._output.read()  # its end is what closes the pipe

    async def _ask(self, message: SetUp | Job) -> Answer:
        """Raises `_Ended` if it ends instead of answering."""
        with suppress(ConnectionError):  # it has ended: reading says so
            self._input.write(frame(message))
            await self._input.drain()
        try:
            length = int.from_bytes(await self._output.readexactly(LENGTH), "little")
            return cast("Answer", _answers.decode(await self._output.readexactly(length)))
        except EOFError:
            raise _Ended(await self._process.wait()) from None

    def _cause(self, ended: _Ended, seconds: float) -> str:
        if ended.code == -signal.SIGPROF:
            return f"takes more than {seconds:g} s of CPU time"
        if ended.code in (OUT_OF_MEMORY, -signal.SIGABRT):  # Rust aborts when memory is refused
            return f"takes more than {self._memory / (1 << 20):.0f} MiB of memory"
        return f"crashed the compiler {ended}"


class _Ended(Exception):
    """The process has ended with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"({signal.Signals(-code).name if code < 0 else f'exit code {code}'})")
        self.code = code
