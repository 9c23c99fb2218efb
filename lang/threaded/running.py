"""One run of a program whose body is in a thread: reading from it, its end, and who has heard of its failure."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec

from sgl_actors.errors import ActorDown, ProgramError, SglActorsError, UnknownVariable
from sgl_actors.lang.caller import asked_at, caller
from sgl_actors.lang.errors import PrimitiveFailed, StreamEnded
from sgl_actors.lang.ir import AnyNode, Gen
from sgl_actors.lang.protocols import Run
from sgl_actors.lang.state import ProgramState as LoopState
from sgl_actors.lang.threaded.errors import NoValue, NoVariable
from sgl_actors.lang.threaded.loop import LoopThread
from sgl_actors.lang.threaded.stream import HandedStream

T = TypeVar("T")


class GenDefaults(msgspec.Struct, frozen=True):
    """What `run(…)` says for gens that do not say it, beyond sampling arguments; see `ir.Gen`."""

    count: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs_start: int = -1

    def fill(self, node: AnyNode) -> AnyNode:
        """The node with what it does not say itself."""
        if not isinstance(node, Gen) or self == GenDefaults():
            return node
        plain = GenDefaults()
        names = [name for name in self.__struct_fields__ if getattr(node, name) == getattr(plain, name)]
        return msgspec.structs.replace(node, **{name: getattr(self, name) for name in names})


class Running:
    """See the module.

    Attributes:
        stream: its text is read while it is written.
        inline: `+=` returns when what it adds is done.
        error: what the body raised, if it is run beside its caller.
    """

    def __init__(
        self, loop: LoopThread, run: Run, name: str, defaults: GenDefaults, *, stream: bool, inline: bool
    ) -> None:
        self.loop, self.run, self.name, self.defaults = loop, run, name, defaults
        self.stream, self.inline = stream, inline
        self.root = HandedStream(loop, run.root.path, run.root)
        self.error: BaseException | None = None
        self.body_thread = 0
        self._over: Future[None] = Future()
        self._ending = self._heard = False

    def __repr__(self) -> str:
        return f"<Running {self.name} {'over' if self._over.done() else 'runs'}>"

    def read(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Block until `ask()` is answered.

        Raises:
            NoVariable: nothing defines it.
            NoValue: what should have defined it failed.
            ProgramError: whatever else has gone wrong.
        """
        line = asked_at.set(caller())
        try:
            outside = self._outside()
            return self.loop.wait(lambda: self._asked(ask, outside=outside))
        except UnknownVariable as error:
            raise NoVariable(error.message, param=error.param) from (self.error or error.__cause__)
        except PrimitiveFailed as error:
            self._heard = True
            raise NoValue(error.message, param=error.param) from error.__cause__
        except ProgramError:
            self._heard = True
            raise
        finally:
            asked_at.reset(line)

    async def follow(
        self, state: LoopState, name: str | None, *, meta: bool = False
    ) -> AsyncGenerator[Any, None]:
        """Text of a variable, or of the whole prompt, while it is being written; for the loop. Ends with what the body raised."""
        try:
            async with aclosing(self._pieces(state, name, meta=meta)) as pieces:
                async for piece in pieces:
                    yield piece
        except UnknownVariable:
            yield ("", {}) if meta else ""
        except ProgramError:
            self._heard = True
            raise
        if self.error is not None:
            self._heard = True
            raise self.error

    async def _pieces(self, state: LoopState, name: str | None, *, meta: bool) -> AsyncGenerator[Any, None]:
        shown = 0
        try:
            async with aclosing(state.follow(name, meta)) as pieces:
                async for piece in pieces:
                    shown += len(piece[0] if meta else piece)
                    yield piece
        except ActorDown:  # it has been collected, or the program is over: what is left is known
            whole = str(
                await self._asked(lambda: state.text() if name is None else state[name], outside=True)
            )
            last = {} if name is None or not meta else await state.meta(name)
            if meta or whole[shown:]:
                yield (whole[shown:], last) if meta else whole[shown:]

    def failure(self, ask: Callable[[], Awaitable[SglActorsError | None]]) -> BaseException | None:
        """Why it failed, or None."""
        try:
            outside = self._outside()
            found = self.loop.wait(lambda: self._asked(ask, outside=outside))
        except SglActorsError as error:
            found = error
        self._heard = True
        return self.error or found

    def settle(self) -> None:
        """The body has ended: nothing more is added, and what it has begun is done to its end. Does not wait for that."""
        self._ending = True
        self.root.end(f"program {self.name!r} is over")
        with suppress(StreamEnded):  # the interpreter is exiting, and the loop ends all that runs
            self.loop.submit(self._settle)

    def abort(self) -> None:
        """The body has ended in a way that nobody goes on from: all that it has begun is cancelled."""
        self._ending = self._heard = True
        self.root.end(f"program {self.name!r} is over")
        with suppress(StreamEnded):
            self.loop.submit(self.run.close)
        self._end()

    def wait(self) -> None:
        """Block until everything is done, well or not."""
        self._over.result()

    def _outside(self) -> bool:
        return self.stream and threading.get_ident() != self.body_thread

    async def _asked(self, ask: Callable[[], Awaitable[T]], *, outside: bool) -> T:
        """Ask, and once more when the program is over if only then there can be an answer: an actor that has ended leaves what it held."""
        try:
            return await ask()
        except ActorDown:
            if not self._ending:
                raise
        except UnknownVariable:
            if not outside or self._over.done():
                raise
        await asyncio.shield(asyncio.wrap_future(self._over))
        return await ask()

    async def _settle(self) -> None:
        try:
            await self.run.finish()
        except SglActorsError as error:
            if not (
                isinstance(error, ActorDown) and self.loop.exiting
            ):  # nobody waits for what the exit has cut off
                self._warn(error)
        else:
            if self.error is not None:
                self._warn(self.error)
        finally:
            await self.run.close()
            self._end()

    def _end(self) -> None:
        with suppress(InvalidStateError):  # it has been aborted, too
            self._over.set_result(None)

    def _warn(self, error: BaseException) -> None:
        """As SGLang does; where warnings are errors there is nobody here who could take it."""
        if not self._heard:
            with suppress(RuntimeWarning):
                warnings.warn(f"{self.name}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
