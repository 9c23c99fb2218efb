"""`@function` for bodies that are plain functions: run in the caller's thread, in a thread beside it, or many in a pool."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, overload

import msgspec

from sgl_actors.lang.arguments import MAX_COUNT, MAX_TOP_LOGPROBS, whole
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.function import OPTIONS, Function, checked
from sgl_actors.lang.graph import Recording
from sgl_actors.lang.ir import SamplingArgs, check_text
from sgl_actors.lang.primitives import MAX_COMPLETIONS
from sgl_actors.lang.protocols import RunOptions
from sgl_actors.lang.results import shorten
from sgl_actors.lang.state import ProgramState as LoopState
from sgl_actors.lang.threaded.batch import CHUNK, Runs, run_in_threads, thread_count
from sgl_actors.lang.threaded.config import global_config
from sgl_actors.lang.threaded.loop import background
from sgl_actors.lang.threaded.running import GenDefaults, Running
from sgl_actors.lang.threaded.state import ProgramState

GEN_OPTIONS: Final = (
    "n",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)
"""Arguments of `run` for gens that do not state them, besides sampling arguments."""


class Asked(NamedTuple):
    """How a program is to be run, checked."""

    options: RunOptions
    defaults: GenDefaults


class SglFunction:
    """A program, perhaps with some of its arguments. Made by `@function`.

    Attributes:
        func: its body.
        bind_arguments: what it is bound to.
        arg_names: of its body, `s` left out.
        num_api_spec_tokens: on API models, how many tokens are asked for at least, so that one call may do for several gens; 0 is one call per
            gen, None as many as the program shows to come.

    Example:
        >>> @function
        ... def capital(s, country):
        ...     s += f"The capital of {country} is" + gen("city")
        >>> capital.bind(country="France").run()["city"]
        'Paris'
        >>> [state["city"] for state in capital.run_batch([{"country": "France"}, ("Italy",)])]
        ['Paris', 'Paris']
    """

    def __init__(
        self,
        func: Callable[..., Any],
        num_api_spec_tokens: int | None = None,
        bind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._signature = inspect.signature(func)
        first, *names = [*self._signature.parameters, ""]
        if first != "s":
            raise InvalidPrimitive(
                f"{func.__qualname__}: the first parameter of a program is `s`, its state, not {first}"
            )
        if inspect.iscoroutinefunction(func):
            raise InvalidPrimitive(
                f"{func.__qualname__}: an async body is a program of `sgl_actors`, not of `sgl_actors.compat`"
            )
        self.func, self.name = func, func.__name__
        check_text("function: name", self.name, "name")
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bind_arguments = dict(bind_arguments or {})
        self.arg_names = names[:-1]
        self.__doc__ = func.__doc__
        self.__wrapped__ = func

    def __repr__(self) -> str:
        return f"<function {self.name}{self._signature}>"

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        """The same as `run`."""
        return self.run(*args, **kwargs)

    def bind(self, **kwargs: Any) -> SglFunction:
        """The same program with these arguments, which go before those given to `run`.

        Raises:
            InvalidPrimitive: the body has no parameter of that name.
        """
        for name in kwargs.keys() - set(self.arg_names):
            raise InvalidPrimitive(f"{self.name}: bind: the body has no parameter {name!r}", param=name)
        return SglFunction(self.func, self.num_api_spec_tokens, {**self.bind_arguments, **kwargs})

    def run(
        self, *args: Any, stream: bool = False, backend: Any = None, use_thread: bool = True, **kwargs: Any
    ) -> ProgramState:
        """Run the body and return its state; what it has begun goes on while nobody reads it.

        Args:
            args: of the body.
            stream: run the body in a thread of its own, so that `state.text_iter(…)` can be read meanwhile.
            backend: a `Runtime`, a `RuntimeEndpoint`, or what `sgl_actors` runs programs on; by default the one set with `set_default_backend`, else
                a node that is opened for this process.
            use_thread: False has each `s += …` wait until it is done.
            kwargs: arguments of the body; for gens that do not state them `max_new_tokens` (128), `temperature` (1), `n`, `stop` and whatever
                else `gen` takes for sampling and log probabilities; and the run's own `seed`, `timeout`, `priority`, `cache_salt`, `budget`.

        Raises:
            ProgramError: of what the body read, or wrote in a way that has no meaning.
            Exception: what the body raised, with a note of where its prompt was.

        A gen that fails without being read does not raise here: `state.error()` tells, reading the state raises, and a `RuntimeWarning` is given.
        """
        own, options = self._divide(kwargs)
        asked = self._asked({**options, "live": stream})
        running = self._start(asked, backend, stream=stream, inline=not use_thread)
        state = ProgramState(running, LoopState(running.root))
        if stream:
            run = partial(contextvars.copy_context().run, self._beside, state, args, own)
            background.beside(run, f"program {self.name}")
        else:
            self._body(state, args, own)
        return state

    @overload
    def run_batch(
        self, batch_kwargs: Sequence[Any], *, generator_style: Literal[False] = False, **options: Any
    ) -> list[ProgramState]: ...
    @overload
    def run_batch(
        self, batch_kwargs: Sequence[Any], *, generator_style: Literal[True], **options: Any
    ) -> Generator[ProgramState, None, None]: ...
    def run_batch(
        self,
        batch_kwargs: Sequence[Any],
        *,
        backend: Any = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **options: Any,
    ) -> list[ProgramState] | Generator[ProgramState, None, None]:
        """Run it once per item (a dict of arguments, or a tuple of positional ones); states in their order, each done.

        Args:
            batch_kwargs: the items.
            backend: as for `run`.
            num_threads: bodies at the same time; "auto" is at least 96.
            progress_bar: show one while standard error is a terminal.
            generator_style: give an iterator, which yields each state when it and those before it are there; leaving it ends the rest.
            options: as for `run`; with a `seed`, item i runs with seed + i.

        Raises:
            InvalidPrimitive: an item does not fit the body.
            Exception: the first that a body raised; the others are ended. What fails without being read does not raise: see `run`.
        """
        items = [self._item(item) for item in batch_kwargs]
        seed, runs = options.pop("seed", None), Runs()
        asked = [
            self._asked({**options, "seed": None if seed is None else seed + i}) for i in range(len(items))
        ]

        def one(index: int) -> ProgramState:
            running = self._start(asked[index], backend, stream=False, inline=False)
            state = ProgramState(running, LoopState(running.root))
            runs.begin(running)
            try:
                self._body(state, (), items[index])
                running.wait()
            finally:
                runs.end(running)
            return state

        threads, title = thread_count(num_threads, len(items)), self.name if progress_bar else None
        chunk = CHUNK if generator_style else len(items)
        states = run_in_threads(one, len(items), runs, threads=threads, chunk=chunk, title=title)
        return states if generator_style else list(states)

    def trace(self, *, backend: Any = None, **kwargs: Any) -> Recording:  # noqa: ARG002 - nothing is asked of it
        """What it does, as far as that is known without running it; arguments that are not given stay open. Print it."""
        return background.wait(partial(self._recordable().trace, **{**kwargs, **self.bind_arguments}))

    def cache(self, backend: Any = None) -> int:
        """Have the node compute what every run begins with; its length in tokens."""
        runtime = global_config.runtime(backend)
        return background.wait(partial(self._recordable().cache, backend=runtime, **self.bind_arguments))

    def _recordable(self) -> Function[...]:
        def body(s: LoopState, *args: Any, **kwargs: Any) -> Any:
            return self.func(ProgramState(None, s), *args, **kwargs)

        body.__signature__ = self._signature  # type: ignore[attr-defined] # PEP 362
        return Function(body, self.name)

    def _start(self, asked: Asked, backend: Any, *, stream: bool, inline: bool) -> Running:
        runtime = global_config.runtime(backend)
        background.closes(runtime)
        options = msgspec.structs.replace(asked.options, live=stream)
        run = background.wait(lambda: runtime.start(self.name, options))
        return Running(background, run, self.name, asked.defaults, stream=stream, inline=inline)

    def _body(self, state: ProgramState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running = state.running
        try:
            state.ret_value = self.func(state, *args, **kwargs)
        except BaseException as error:
            if isinstance(error, Exception):
                tail = shorten(background.wait(running.root.tail))
                error.add_note(f"raised in program {self.name!r}; its prompt ends: {tail!r}")
            running.abort()
            raise
        running.settle()
        if global_config.verbosity >= 2:
            print(state.text())  # noqa: T201 - that is what was asked for

    def _beside(self, state: ProgramState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running = state.running
        running.body_thread = threading.get_ident()
        try:
            state.ret_value = self.func(state, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - whoever reads the state gets it
            running.error = error
        running.settle()

    def _item(self, item: Any) -> dict[str, Any]:
        """Arguments of one run of a batch."""
        try:
            if not isinstance(item, Mapping):
                self._signature.bind_partial(None, *item)
                item = dict(zip(self.arg_names, item, strict=False))
            own = {**item, **self.bind_arguments}
            self._signature.bind(None, **own)
        except TypeError as error:
            raise InvalidPrimitive(f"{self.name}: run_batch: {error}: {item!r:.80}") from None
        return own

    def _divide(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the body and options of the run."""
        known = OPTIONS.union(GEN_OPTIONS).difference(self.arg_names, {"backend", "durable", "id"})
        own = {name: value for name, value in kwargs.items() if name not in known}
        return {**own, **self.bind_arguments}, {n: v for n, v in kwargs.items() if n in known}

    def _asked(self, options: Mapping[str, Any]) -> Asked:
        """Options of a run, checked."""
        given = {name: value for name, value in options.items() if value is not None}
        where = f"{self.name}: run(…)"
        top = whole(where, "top_logprobs_num", given.pop("top_logprobs_num", 0), 0, MAX_TOP_LOGPROBS)
        start = whole(where, "logprob_start_len", given.pop("logprob_start_len", -1), -1, MAX_COUNT)
        count = whole(where, "n", given.pop("n", 1), 1, MAX_COMPLETIONS)
        wanted = bool(given.pop("return_logprob", False)) or top > 0 or start >= 0
        given.pop("return_text_in_logprobs", None)
        if not global_config.skip_special_tokens_in_output:
            given.setdefault("skip_special_tokens", False)
        run = {name: given.pop(name) for name in RunOptions.__struct_fields__ if name in given}
        if self.num_api_spec_tokens is not None:
            run.setdefault("speculation", self.num_api_spec_tokens)
        for name in given.keys() - {"max_new_tokens", *SamplingArgs.__struct_fields__}:
            raise InvalidPrimitive(f"{where}: there is no option {name!r}", param=name)
        if "max_new_tokens" in given:
            given["max_tokens"] = given.pop("max_new_tokens")
        return Asked(checked(where, RunOptions(**run), given), GenDefaults(count, wanted, top, start))


@overload
def function(func: Callable[..., Any], num_api_spec_tokens: int | None = None) -> SglFunction: ...
@overload
def function(
    func: None = None, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[..., Any]], SglFunction]: ...
def function(
    func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None
) -> SglFunction | Callable[[Callable[..., Any]], SglFunction]:
    """Make a program of a plain function whose first parameter is `s`.

    Example:
        >>> @function
        ... def capital(s, country):
        ...     s += f"The capital of {country} is" + gen("capital", stop=".")
        >>> state = capital.run(country="France")
    """
    if func is not None:
        return SglFunction(func, num_api_spec_tokens)
    return lambda func: SglFunction(func, num_api_spec_tokens)
