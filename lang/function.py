"""`@function`: a body becomes a program that can be bound, run, run in batches and streamed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Concatenate, Generic, ParamSpec, cast, overload

from sgl_actors.errors import ActorDown, DeadlineExceeded, ProgramError, SglActorsError
from sgl_actors.lang.arguments import (
    MAX_PRIORITY,
    MAX_SEED,
    MAX_TIMEOUT,
    check_name,
    check_salt,
    flag,
    number,
    sampling_args,
    whole,
)
from sgl_actors.lang.batch import run_all
from sgl_actors.lang.body import BodyOverdue, run_body
from sgl_actors.lang.errors import BodyFailed, InvalidPrimitive
from sgl_actors.lang.ir import SamplingArgs, check_text
from sgl_actors.lang.protocols import Run, RunOptions, Runtime, default_runtime
from sgl_actors.lang.results import describe
from sgl_actors.lang.state import FinishedState, ProgramState

GRACE = 1.0
"""Seconds after the deadline in which a stream says what it was waiting for, before the body is ended."""

P = ParamSpec("P")
Body = Callable[Concatenate[ProgramState, P], Any]

OPTIONS = frozenset(
    {"backend", "max_new_tokens", *RunOptions.__struct_fields__, *SamplingArgs.__struct_fields__}
    - {"sampling"}
)
"""Keyword arguments of `run` that are about the run, unless the body has a parameter of that name."""


class Function(Generic[P]):
    """A program without its arguments. Made by `@function`."""

    def __init__(self, body: Body[P], name: str | None = None) -> None:
        self._signature = inspect.signature(body)
        first = next(iter(self._signature.parameters), None)
        if first != "s":
            raise InvalidPrimitive(
                f"{body.__qualname__}: the first parameter of a program is `s`, its state, not {first}"
            )
        self.body = body
        self.name = name or body.__name__
        check_text("function: name", self.name, "name")
        self.__doc__ = body.__doc__
        self.__wrapped__ = body

    def __repr__(self) -> str:
        return f"<function {self.name}{self._signature}>"

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Program:
        """Give it its arguments; what is missing can be given to `Program.run`."""
        try:
            bound = self._signature.bind_partial(None, *args, **kwargs)
        except TypeError as error:
            raise InvalidPrimitive(f"{self.name}: {error}") from None
        arguments = dict(bound.arguments)
        del arguments["s"]
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(parameter.name, {}))
        return Program(self.body, self.name, self._signature, arguments)

    async def run(self, *args: P.args, **kwargs: P.kwargs) -> FinishedState:
        """Run it with these arguments. The options of `Program.run` are taken here, too."""
        own, options = self._divide(kwargs)
        return await self.bind(*args, **own).run(**options)

    def stream(self, variable: str, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[str, None]:
        """Run it and yield the text of one variable as it is written."""
        own, options = self._divide(kwargs)
        return self.bind(*args, **own).stream(variable, **options)

    async def run_batch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        progress_bar: bool = False,
        max_concurrency: int = 64,
        return_exceptions: bool = False,
        **options: Any,
    ) -> list[FinishedState]:
        """Run it once per item (keyword arguments as a dict, or positional ones as a tuple); results in their order.

        Args:
            batch: the items.
            progress_bar: show one while standard error is a terminal.
            max_concurrency: programs at the same time.
            return_exceptions: put an item's `SglActorsError` in its place; else the first one ends the batch and is raised.
            options: as for `Program.run`, for every item; with a `seed`, item i runs with seed + i.
        """
        programs = [self.bind(**item) if isinstance(item, Mapping) else self.bind(*item) for item in batch]  # type: ignore[call-arg]
        seed = options.pop("seed", None)

        async def one(index: int) -> FinishedState:
            return await programs[index].run(**options, seed=None if seed is None else seed + index)

        title = self.name if progress_bar else None
        return await run_all(
            one, len(programs), limit=max_concurrency, keep_errors=return_exceptions, title=title
        )

    def _divide(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the body and options of the run."""
        parameters = self._signature.parameters
        options = {k: v for k, v in kwargs.items() if k in OPTIONS and k not in parameters}
        return {k: v for k, v in kwargs.items() if k not in options}, options


class Program:
    """A program with its arguments."""

    def __init__(
        self, body: Callable[..., Any], name: str, signature: inspect.Signature, arguments: Mapping[str, Any]
    ) -> None:
        self.body, self.name = body, name
        self._signature, self._arguments = signature, dict(arguments)

    def __repr__(self) -> str:
        return f"<program {self.name}({', '.join(self._arguments)})>"

    async def run(
        self,
        *,
        backend: Runtime | None = None,
        seed: int | None = None,
        timeout: float = 3600.0,
        priority: int = 0,
        cache_salt: str = "",
        fork_hint: bool = True,
        **options: Any,
    ) -> FinishedState:
        """Run it to its end.

        Args:
            backend: a `Node` or a connection; by default the one opened last, else an embedded node.
            seed: fixes every sample; the same seed gives the same tokens. 64 bits.
            timeout: seconds for the whole program; when they are over, or the caller is cancelled, all it has asked for is
                cancelled, whatever the body does.
            priority: requests of higher ones are admitted first, -1000 to 1000.
            cache_salt: share cached prefixes only with what has the same salt.
            fork_hint: have the common prefix of a fork's branches computed before they start. False leaves it to the branch that comes
                first (for comparison; texts and samples are the same).
            options: sampling arguments for gens that do not state them (`temperature=0`, `max_tokens=64`), and
                arguments of the body that were not bound.

        Raises:
            PrimitiveFailed: a gen, select or join failed; `__cause__` is what the node said.
            BodyFailed: the body raised; `__cause__` is what it raised.
            ProgramError: `UnknownVariable`, `UnresolvedVariable`, `InvalidPrimitive`: the program is wrong.
        """
        asked = RunOptions(seed, timeout, SamplingArgs(), priority, cache_salt, fork_hint)
        arguments, run_options = self._prepare(asked, options)
        run = await (backend or default_runtime()).start(self.name, run_options)
        try:
            return await self._drive(run, arguments, timeout)
        finally:
            await run.close()

    async def stream(
        self,
        variable: str,
        *,
        backend: Runtime | None = None,
        seed: int | None = None,
        timeout: float = 3600.0,
        priority: int = 0,
        cache_salt: str = "",
        fork_hint: bool = True,
        **options: Any,
    ) -> AsyncGenerator[str, None]:
        """Run it and yield the text of the first variable of that name, as it is written; the program then runs to its end.

        Raises what `run` raises; closing the iterator early cancels the program.
        """
        check_name("stream", variable)
        asked = RunOptions(seed, timeout, SamplingArgs(), priority, cache_salt, fork_hint)
        arguments, run_options = self._prepare(asked, options)
        run = await (backend or default_runtime()).start(self.name, run_options)

        async def drive() -> None:
            try:
                await self._drive(run, arguments, timeout)
            except BaseException:
                await run.close()
                raise

        task = asyncio.get_running_loop().create_task(drive(), name=f"program {self.name}")
        try:
            async with aclosing(cast("Any", run.root.listen(variable))) as chunks:
                async for chunk in chunks:
                    yield chunk
            await task
        except ActorDown:
            await task  # the run was closed under us: why, says the body
            raise
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await run.close()

    async def _drive(self, run: Run, arguments: Mapping[str, Any], timeout: float) -> FinishedState:
        """Run the body against an open run, then wait for what it has begun."""
        state = ProgramState(run.root)

        async def body() -> Any:
            value = self.body(state, **arguments)
            return await value if isinstance(value, Awaitable) else value

        try:
            value = await run_body(body(), run, timeout + GRACE, f"body of program {self.name}")
        except ProgramError:
            raise
        except BodyOverdue as overdue:
            message = f"the body has not ended in {timeout:g} s"
            raise DeadlineExceeded(describe(message, self.name, "", "", overdue.tail)) from None
        except SglActorsError as error:
            message = describe(error.message, self.name, "", "", await run.root.tail())
            raise type(error)(message, param=error.param) from error
        except Exception as error:
            message = f"the body raised {type(error).__name__}: {error}"
            raise BodyFailed(describe(message, self.name, "", "", await run.root.tail())) from error
        return FinishedState(await run.finish(), self.name, value, run.seed)

    def _prepare(self, asked: RunOptions, options: dict[str, Any]) -> tuple[dict[str, Any], RunOptions]:
        """Arguments of the body and options of the run, both checked."""
        if "max_new_tokens" in options and "max_new_tokens" not in self._signature.parameters:
            options["max_tokens"] = options.pop("max_new_tokens")
        names = self._signature.parameters.keys()
        sampling = {
            k: v for k, v in options.items() if k in SamplingArgs.__struct_fields__ and k not in names
        }
        arguments = {**{k: v for k, v in options.items() if k not in sampling}, **self._arguments}
        try:
            self._signature.bind(None, **arguments)
        except TypeError as error:
            raise InvalidPrimitive(f"{self.name}: {error}") from None
        where, seed = f"{self.name}: run(…)", asked.seed
        run_options = RunOptions(
            None if seed is None else whole(where, "seed", seed, -MAX_SEED - 1, MAX_SEED),
            number(where, "timeout", asked.timeout, 0.0, MAX_TIMEOUT),
            sampling_args(where, sampling),
            whole(where, "priority", asked.priority, -MAX_PRIORITY, MAX_PRIORITY),
            check_salt(where, asked.cache_salt),
            flag(where, "fork_hint", asked.fork_hint),
        )
        return arguments, run_options


@overload
def function(body: Body[P], /) -> Function[P]: ...
@overload
def function(*, name: str | None = None) -> Callable[[Body[P]], Function[P]]: ...
def function(
    body: Body[P] | None = None, *, name: str | None = None
) -> Function[P] | Callable[[Body[P]], Function[P]]:
    """Make a program of an async (or plain) function whose first parameter is `s`.

    Example:
        >>> @function
        ... async def capital(s, country):
        ...     s += f"The capital of {country} is" + gen("capital", stop=".")
        >>> state = await capital.run(country="France")
    """
    if body is not None:
        return Function(body, name)
    return lambda body: Function(body, name)
