"""`@function`: a body becomes a program that can be bound, run, run in batches and streamed."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Concatenate, Final, Generic, Literal, ParamSpec, cast, overload

import msgspec

from sgl_actors.errors import ActorDown, DeadlineExceeded, ProgramError, SglActorsError
from sgl_actors.lang.arguments import (
    MAX_PRIORITY,
    MAX_SEED,
    MAX_TIMEOUT,
    check_budget,
    check_name,
    check_salt,
    check_speculation,
    flag,
    number,
    sampling_args,
    whole,
)
from sgl_actors.lang.batch import AHEAD, check_limit, run_in_order
from sgl_actors.lang.body import BodyOverdue, run_body
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.caller import placed, raised_at
from sgl_actors.lang.durable import Past, durable_of, pack_value, unpack_value
from sgl_actors.lang.errors import BodyFailed, BudgetExceeded, InvalidPrimitive, UnresolvedVariable
from sgl_actors.lang.finished import FinishedState
from sgl_actors.lang.graph import Recording, sketch
from sgl_actors.lang.ir import Expression, Gen, SamplingArgs, check_text
from sgl_actors.lang.pending import Pending
from sgl_actors.lang.protocols import Run, RunOptions, Runtime, check_backend, default_runtime
from sgl_actors.lang.results import describe, unknown
from sgl_actors.lang.state import ProgramState

GRACE = 1.0
"""Seconds after the deadline in which a stream says what it was waiting for, before the body is ended."""

UNLIMITED: Final = Budget()

P = ParamSpec("P")
Batch = Iterable[Mapping[str, Any] | Sequence[Any]]
Body = Callable[Concatenate[ProgramState, P], Any]

OPTIONS = frozenset(
    {"backend", "id", "max_new_tokens", *RunOptions.__struct_fields__, *SamplingArgs.__struct_fields__}
    - {"sampling", "live"}
)
"""Keyword arguments of `run` that are about the run, unless the body has a parameter of that name."""


class Function(Generic[P]):
    """A program without its arguments. Made by `@function`.

    Example:
        >>> @function
        ... async def capital(s, country):
        ...     s += f"The capital of {country}: " + gen("city")
        >>> capital
        <function capital(s, country)>
        >>> [state["city"] for state in await capital.run_batch([{"country": "France"}, ("Texas",)])]
        ['Paris', 'Paris']
    """

    def __init__(self, body: Body[P], name: str | None = None, speculation: int = -1) -> None:
        self._signature = inspect.signature(body)
        first = next(iter(self._signature.parameters), None)
        if first != "s":
            raise InvalidPrimitive(
                f"{body.__qualname__}: the first parameter of a program is `s`, its state, not {first}"
            )
        self.body, self.speculation = body, speculation
        self.name = name or body.__name__
        check_text("function: name", self.name, "name")
        self.__doc__ = body.__doc__
        self.__wrapped__ = body

    def __repr__(self) -> str:
        return f"<function {self.name}{self._signature}>"

    def with_arguments(self, arguments: Mapping[str, Any]) -> Program:
        """As `bind`, with arguments by name that were checked before."""
        return Program(self.body, self.name, self._signature, arguments, speculation=self.speculation)

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
        return self.with_arguments(arguments)

    async def run(self, *args: Any, **kwargs: Any) -> FinishedState:
        """Run it with these arguments. The options of `Program.run` are taken here, too; `bind` is what type checkers know."""
        own, options = self._divide(kwargs)
        return await self.bind(*args, **own).run(**options)

    def stream(self, variable: str, *args: Any, **kwargs: Any) -> AsyncGenerator[str, None]:
        """Run it and yield the text of one variable as it is written."""
        own, options = self._divide(kwargs)
        return self.bind(*args, **own).stream(variable, **options)

    async def __call__(self, *args: Any, **kwargs: Any) -> FinishedState:
        """The same as `run`."""
        return await self.run(*args, **kwargs)

    async def trace(self, *args: Any, **kwargs: Any) -> Recording:
        """What it does, as far as that is known without running it; arguments that are not given stay open.

        Example:
            >>> @function
            ... async def capital(s, country):
            ...     s += f"The capital of {country} is" + gen("capital")
            >>> print(await capital.trace())
            0: 'The capital of ' {country} ' is' gen(capital)
        """
        return await sketch(self.bind(*args, **kwargs))

    async def cache(self, *args: Any, backend: Runtime | None = None, **kwargs: Any) -> int:
        """Have the node compute what every run begins with, up to the first argument that is not given here; its length in tokens."""
        nodes = (await self.trace(*args, **kwargs)).prefix()
        if not nodes:
            return 0

        def warm(s: ProgramState) -> None:
            s += Expression((*nodes, Gen("prefix", SamplingArgs(max_tokens=0))))

        state = await Program(warm, f"{self.name}.cache", inspect.signature(warm), {}).run(backend=backend)
        return int(state.meta("prefix")["prompt_tokens"])

    @overload
    async def run_batch(
        self, batch: Batch, *, generator_style: Literal[False] = False, **options: Any
    ) -> list[FinishedState]: ...
    @overload
    async def run_batch(
        self, batch: Batch, *, generator_style: Literal[True], **options: Any
    ) -> AsyncGenerator[FinishedState, None]: ...
    async def run_batch(
        self,
        batch: Batch,
        *,
        generator_style: bool = False,
        progress_bar: bool = False,
        max_concurrency: int = 64,
        return_exceptions: bool = False,
        **options: Any,
    ) -> list[FinishedState] | AsyncGenerator[FinishedState, None]:
        """Run it once per item (keyword arguments as a dict, or positional ones as a tuple); results in their order.

        Args:
            batch: the items.
            generator_style: give an async generator, which yields each result as soon as it and those before it are there; leaving it ends
                the rest.
            progress_bar: show one while standard error is a terminal.
            max_concurrency: programs at the same time.
            return_exceptions: put an item's `SglActorsError` in its place; else the first one ends the batch and is raised.
            options: as for `Program.run`, for every item; with a `seed`, item i runs with seed + i, with an `id`, as id-i.
        """
        programs = [self.bind(**item) if isinstance(item, Mapping) else self.bind(*item) for item in batch]  # type: ignore[call-arg]
        seed = options.pop("seed", None)

        own = options.pop("id", None)

        async def one(index: int) -> FinishedState:
            named = None if own is None else f"{own}-{index}"
            drawn = None if seed is None else seed + index
            return await programs[index].run(**options, seed=drawn, id=named)

        title = self.name if progress_bar else None
        check_limit(max_concurrency)
        ahead = AHEAD * max_concurrency if generator_style else None
        results = run_in_order(
            one, len(programs), limit=max_concurrency, keep_errors=return_exceptions, title=title, ahead=ahead
        )
        return results if generator_style else [result async for result in results]

    def _divide(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the body and options of the run."""
        parameters = self._signature.parameters
        options = {k: v for k, v in kwargs.items() if k in OPTIONS and k not in parameters}
        return {k: v for k, v in kwargs.items() if k not in options}, options


class Program:
    """A program with its arguments. `opened`: some are not known, because it is only to be recorded.

    Example:
        >>> @function
        ... async def capital(s, country):
        ...     s += f"The capital of {country}: " + gen("city")
        >>> program = capital.bind("France")
        >>> (await program.run(temperature=0, seed=7)).text()
        'The capital of France: Paris'
    """

    def __init__(
        self,
        body: Callable[..., Any],
        name: str,
        signature: inspect.Signature,
        arguments: Mapping[str, Any],
        *,
        opened: bool = False,
        speculation: int = -1,
    ) -> None:
        self.body, self.name, self.opened = body, name, opened
        self.speculation = speculation
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
        budget: Budget = UNLIMITED,
        speculation: bool | int | None = None,
        durable: bool | str | os.PathLike[str] = False,
        id: str | None = None,  # noqa: A002 - a run's option, never called
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
            budget: what it may use, over all branches.
            speculation: on API models, whether one call may be for several gens: True (the default) for as many as the program shows to come, a number
                to ask for at least that many tokens each time (`num_api_spec_tokens` of SGLang), False for one call per gen.
            durable: record it, so that after the end of this process or of the node the same call goes on where it was; True for the user's own
                journal, else the journal's file.
            id: of a durable program; once it has finished, the same call with the same id gives its result at once.
            options: sampling arguments for gens that do not state them (`temperature=0`, `max_tokens=64`), and
                arguments of the body that were not bound.

        Raises:
            PrimitiveFailed: a gen, select or join failed; `__cause__` is what the node said.
            BodyFailed: the body raised; `__cause__` is what it raised.
            BudgetExceeded: it would have used more than its budget.
            ProgramError: `UnknownVariable`, `UnresolvedVariable`, `InvalidPrimitive`: the program is wrong.
            JournalUnavailable, ProgramRunning, ProgramChanged: a durable program cannot be recorded, runs already, or is not the one recorded.
        """
        asked = RunOptions(
            seed,
            timeout,
            SamplingArgs(),
            priority,
            cache_salt,
            fork_hint,
            budget,
            speculation=self.speculation if speculation is None else speculation,
        )
        arguments, run_options = self._prepare(asked, options, durable, id)
        runtime = check_backend(backend or default_runtime())
        past = await recall(runtime, self.name, run_options)
        if past is not None:
            value = unpack_value(self.body, past.value)
            return FinishedState(past.outcome, self.name, value, past.seed, past.usage)
        run = await runtime.start(self.name, run_options)
        try:
            return await self._drive(run, arguments, run_options)
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
        budget: Budget = UNLIMITED,
        speculation: bool | int | None = None,
        durable: bool | str | os.PathLike[str] = False,
        id: str | None = None,  # noqa: A002 - as in `run`
        **options: Any,
    ) -> AsyncGenerator[str, None]:
        """Run it and yield the text of the first variable of that name, as it is written; the program then runs to its end.

        Raises what `run` raises; closing the iterator early cancels the program.
        """
        check_name("stream", variable)
        asked = RunOptions(
            seed,
            timeout,
            SamplingArgs(),
            priority,
            cache_salt,
            fork_hint,
            budget,
            speculation=self.speculation if speculation is None else speculation,
        )
        arguments, run_options = self._prepare(asked, options, durable, id)
        runtime = check_backend(backend or default_runtime())
        past = await recall(runtime, self.name, run_options)
        if past is not None:
            if variable not in past.outcome.variables:
                raise unknown(variable, self.name, past.outcome.stream, past.outcome.variables).error()
            yield str(past.outcome.variables[variable])
            return
        run = await runtime.start(self.name, run_options)

        async def drive() -> None:
            try:
                await self._drive(run, arguments, run_options)
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

    async def _drive(self, run: Run, arguments: Mapping[str, Any], asked: RunOptions) -> FinishedState:
        """Run it to its end; the run is told why it failed."""
        try:
            return await self._carry_out(run, arguments, asked)
        except SglActorsError as error:
            found = run.failed(error)
            if found is error:
                raise
            raise found from error

    async def _carry_out(self, run: Run, arguments: Mapping[str, Any], asked: RunOptions) -> FinishedState:
        """Run the body against an open run, then wait for what it has begun."""
        state = ProgramState(run.root)
        within = asked.budget.seconds
        timeout = asked.timeout if within is None else min(asked.timeout, within)

        async def body() -> Any:
            value = self.body(state, **arguments)
            value = await value if inspect.iscoroutine(value) else value
            if isinstance(value, Pending):
                raise UnresolvedVariable(f"the body returns {value!r}; write `return await …`")
            return value

        try:
            value = await run_body(body(), run, timeout + GRACE, f"body of program {self.name}")
        except ProgramError as error:
            raise placed(error, self.name) from error.__cause__
        except BodyOverdue as overdue:
            message = f"the body has not ended in {timeout:g} s"
            late = DeadlineExceeded if within is None or within > timeout else BudgetExceeded
            raise late(describe(message, self.name, "", "", overdue.tail)) from None
        except SglActorsError as error:
            message = describe(error.message, self.name, "", "", await run.root.tail(), raised_at(error))
            raise type(error)(message, param=error.param) from error
        except Exception as error:
            message = f"the body raised {type(error).__name__}: {error}"
            tail = await run.root.tail()
            raise BodyFailed(describe(message, self.name, "", "", tail, raised_at(error))) from error
        outcome = await run.finish()
        warnings = [] if asked.durable is None else await run.keep(outcome, pack_value(self.body, value))
        return FinishedState(outcome, self.name, value, run.seed, run.usage, warnings)

    def with_open_arguments(self, make: Callable[[str], Any]) -> Program:
        """The same, with `make(name)` for each argument that is not given and has no default."""
        missing = [
            parameter.name
            for parameter in list(self._signature.parameters.values())[1:]
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and parameter.name not in self._arguments
        ]
        arguments = {**self._arguments, **{name: make(name) for name in missing}}
        return Program(
            self.body,
            self.name,
            self._signature,
            arguments,
            opened=bool(missing),
            speculation=self.speculation,
        )

    def _prepare(
        self, asked: RunOptions, options: dict[str, Any], durable: object, program_id: object
    ) -> tuple[dict[str, Any], RunOptions]:
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
        where = f"{self.name}: run(…)"
        recorded = durable_of(where, self.body, arguments, durable, program_id)
        return arguments, msgspec.structs.replace(checked(where, asked, sampling), durable=recorded)


async def recall(runtime: Runtime, name: str, asked: RunOptions) -> Past | None:
    """What a program has left, if it is durable and has finished."""
    return None if asked.durable is None else await runtime.recall(name, asked)


def checked(where: str, asked: RunOptions, sampling: Mapping[str, Any]) -> RunOptions:
    """Options of a run with its sampling arguments; `InvalidPrimitive` for what is out of its range. `where` is for the message."""
    return RunOptions(
        None if asked.seed is None else whole(where, "seed", asked.seed, -MAX_SEED - 1, MAX_SEED),
        number(where, "timeout", asked.timeout, 0.0, MAX_TIMEOUT),
        sampling_args(where, sampling),
        whole(where, "priority", asked.priority, -MAX_PRIORITY, MAX_PRIORITY),
        check_salt(where, asked.cache_salt),
        flag(where, "fork_hint", asked.fork_hint),
        check_budget(where, asked.budget),
        speculation=check_speculation(where, asked.speculation),
        live=asked.live,
    )


@overload
def function(body: Body[P], /) -> Function[P]: ...
@overload
def function(
    *, name: str | None = None, num_api_spec_tokens: int | None = None
) -> Callable[[Body[P]], Function[P]]: ...
def function(
    body: Body[P] | None = None, *, name: str | None = None, num_api_spec_tokens: int | None = None
) -> Function[P] | Callable[[Body[P]], Function[P]]:
    """Make a program of an async (or plain) function whose first parameter is `s`.

    Args:
        body: it.
        name: for views and logs; the function's own by default.
        num_api_spec_tokens: what `run(speculation=…)` is unless it says something else.

    Example:
        >>> @function
        ... async def capital(s, country):
        ...     s += f"The capital of {country} is" + gen("capital", stop=".")
        >>> (await capital.run(country="France"))["capital"]
        'Paris'
    """
    ahead = True if num_api_spec_tokens is None else num_api_spec_tokens
    speculation = check_speculation("function", ahead)
    if body is not None:
        return Function(body, name, speculation)
    return lambda body: Function(body, name, speculation)
