"""Functions that a model may call: typed, checked, and never the end of the program."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

import msgspec

from sgl_actors.errors import ProgramError, SglActorsError, error_class
from sgl_actors.lang.arguments import MAX_COUNT, MAX_TIMEOUT, number, whole
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.signatures import args_of, parameters_schema, read_docstring, shown
from sgl_actors.lang.state import MAX_BRANCHES
from sgl_actors.lang.together import together
from sgl_actors.lang.typed import InvalidValue

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

TOOL_TIMEOUT: Final = 30.0
"""Seconds that one call may take."""
MAX_TEXT: Final = 4000
"""Characters of a result that the model gets to see."""
FINISH: Final = "finish"
"""The action that ends a `react` loop; no tool has this name."""
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class ToolFailed(ProgramError):
    """A tool raised, took too long, or returned what has no text. `__cause__` is what it raised; in a `react` loop the model gets to see the message.

    Example:
        >>> @tool
        ... def weather(city: str) -> str:
        ...     return {"Lima": "mist"}[city]
        >>> try:
        ...     await weather.call({"city": "Rome"})
        ... except ToolFailed as error:
        ...     print(error)
        tool weather raised KeyError: 'Rome'
    """

    code = "tool_failed"


class Tool(Generic[P, R_co]):
    """A function that a model may call. Made by `@tool`; calling it calls the function.

    Attributes:
        name: what the model calls it.
        description: what it is told of it.
        args: a msgspec Struct of its parameters: `gen(type=tool.args)` has the model write them.
        schema: JSON schema of `args`.
        timeout: seconds that a call may take.

    Example:
        >>> @tool(timeout=5)
        ... async def weather(city: str, days: int = 1) -> str:
        ...     \"\"\"The weather in a city.\"\"\"
        ...     return "mist"
        >>> weather.signature, weather.description, sorted(weather.schema["properties"])
        ('weather(city: str, days: int = 1)', 'The weather in a city.', ['city', 'days'])
        >>> await weather.call('{"city": "Lima"}')
        'mist'
    """

    def __init__(
        self, function: Callable[P, R_co], name: str | None, description: str | None, timeout: float
    ) -> None:
        self.function, self.name = function, name or function.__name__
        if not NAME.fullmatch(self.name) or self.name == FINISH:
            raise InvalidPrimitive(
                f"tool: a name is letters, digits, _, - and ., at most 64, and not {FINISH!r}; it is {self.name!r:.80}",
                param="name",
            )
        self.timeout = number(f"tool {self.name}", "timeout", timeout, 0.0, MAX_TIMEOUT)
        about, parameters = read_docstring(inspect.getdoc(function) or "")
        self.description = about if description is None else description
        self.args = args_of(self.name, function, parameters)
        self.schema: dict[str, Any] = parameters_schema(self.args)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<tool {self.signature}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function itself: nothing is checked or caught."""
        return self.function(*args, **kwargs)

    @property
    def signature(self) -> str:
        """Name and parameters, as the model gets to see them."""
        return f"{self.name}({', '.join(map(shown, msgspec.structs.fields(self.args)))})"

    def parse(self, arguments: object) -> msgspec.Struct:
        """Arguments as an `args` struct: of a mapping, of JSON text, or as they are.

        Raises:
            InvalidValue: they are not what the signature says.
        """
        if isinstance(arguments, self.args):
            return arguments
        try:
            if isinstance(arguments, str | bytes):
                return msgspec.json.decode(arguments, type=self.args)
            return msgspec.convert(arguments, self.args)
        except msgspec.MsgspecError as error:
            raise InvalidValue(f"tool {self.name}: {error}; it is called as {self.signature}") from error

    async def call(self, arguments: object, *, timeout: float | None = None) -> Any:
        """What the function returns for these arguments. A plain function runs in a thread of its own.

        Args:
            arguments: a mapping, JSON text, or an `args` struct.
            timeout: seconds; the tool's own by default. A thread cannot be ended: its result is dropped.

        Raises:
            InvalidValue: the arguments are not what the signature says.
            ToolFailed: it raised, or took too long.
        """
        parsed = self.parse(arguments)
        given = {name: getattr(parsed, name) for name in parsed.__struct_fields__}
        seconds = self.timeout if timeout is None else timeout
        limit = asyncio.timeout(seconds)
        function: Callable[..., Any] = self.function
        try:
            async with limit:
                if inspect.iscoroutinefunction(function):
                    return await function(**given)
                made = await asyncio.to_thread(function, **given)
                return await made if inspect.isawaitable(made) else made
        except Exception as error:
            if limit.expired():
                raise ToolFailed(f"tool {self.name}: no result within {seconds:g} s") from None
            raise ToolFailed(f"tool {self.name} raised {type(error).__name__}: {error}") from error


@overload
def tool(function: Callable[P, R_co], /) -> Tool[P, R_co]: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None, timeout: float = TOOL_TIMEOUT
) -> Callable[[Callable[P, R_co]], Tool[P, R_co]]: ...
def tool(
    function: Callable[P, R_co] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = TOOL_TIMEOUT,
) -> Tool[P, R_co] | Callable[[Callable[P, R_co]], Tool[P, R_co]]:
    """Make a tool of a function with typed parameters, plain or async.

    Args:
        function: its signature says what the model has to give; its docstring, "Args:" in Google's style included, what for.
        name: what the model calls it; the function's by default.
        description: what the model is told; the docstring up to "Args:" by default.
        timeout: seconds that a call may take.

    Raises:
        InvalidPrimitive: a parameter without a type, of a type that JSON has no schema for, or `*args`, `**kwargs`.

    Example:
        >>> @tool
        ... def add(a: int, b: int = 1) -> int:
        ...     \"\"\"Add two numbers.\"\"\"
        ...     return a + b
        >>> add
        <tool add(a: int, b: int = 1)>
        >>> await add.call({"a": 2})
        3
    """
    if function is not None:
        return Tool(function, name, description, timeout)
    return lambda function: Tool(function, name, description, timeout)


class Call(msgspec.Struct, frozen=True):
    """A tool to be called by its name, and the arguments: a mapping, JSON text, or the tool's `args` struct.

    Example:
        >>> Call("weather", {"city": "Lima"})
        Call(tool='weather', arguments={'city': 'Lima'})
    """

    tool: str
    arguments: Any = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """What came of a call.

    Attributes:
        call: it.
        text: what the model gets to see: the result (JSON, unless it is text), or what went wrong.
        value: what the tool returned; None if it did not.
        error: why not: `ToolFailed`, or `InvalidValue` for arguments that are wrong and tools that do not exist.

    Example:
        >>> @tool
        ... def split(text: str) -> list[str]:
        ...     return text.split()
        >>> (found,) = await call_all([split], [Call("split", {"text": "a b"})])
        >>> found.text, found.value
        ('["a","b"]', ['a', 'b'])
    """

    call: Call
    text: str
    value: Any = None
    error: SglActorsError | None = None


async def call_all(
    tools: Iterable[Tool[..., Any]],
    calls: Iterable[Call],
    *,
    max_concurrency: int = 8,
    timeout: float | None = None,
    max_text: int = MAX_TEXT,
) -> list[Observation]:
    """Make calls at the same time; what came of them, in their order. What goes wrong with a call is its observation.

    Args:
        tools: what may be called.
        calls: them.
        max_concurrency: calls at the same time.
        timeout: seconds for each; the tool's own by default.
        max_text: characters of an observation; the middle of a longer one is left out.

    Raises:
        InvalidPrimitive: two tools of the same name.

    Example:
        >>> @tool
        ... def double(text: str) -> str:
        ...     \"\"\"Write it twice.\"\"\"
        ...     return text * 2
        >>> found = await call_all([double], [Call("double", {"text": "ha"}), Call("double", {"text": 1})])
        >>> [one.text for one in found]
        ['haha', 'Error: tool double: Expected `str`, got `int` - at `$.text`; it is called as double(text: str)']
    """
    known = by_name(tools)
    gate = asyncio.Semaphore(whole("call_all", "max_concurrency", max_concurrency, 1, MAX_BRANCHES))
    most = whole("call_all", "max_text", max_text, 1, MAX_COUNT)

    async def one(call: Call) -> Observation:
        async with gate:
            try:
                value = await find(call.tool, known).call(call.arguments, timeout=timeout)
                return Observation(call, clip(as_text(call.tool, value), most), value)
            except (ToolFailed, InvalidValue) as error:
                return Observation(call, clip(f"Error: {error.message}", most), None, error)

    return await together([one(call) for call in calls])


def noted(one: Observation) -> list[Any]:
    """An observation as plain data: text, value (None if it is no plain data), code and message of the error."""
    try:
        value = one.value if msgspec.msgpack.decode(msgspec.msgpack.encode(one.value)) == one.value else None
    except (TypeError, ValueError, OverflowError, RecursionError):
        value = None
    error = one.error
    return [one.text, value, "" if error is None else error.code, "" if error is None else error.message]


def recalled(call: Call, known: Sequence[Any]) -> Observation:
    """What `noted` made plain."""
    text, value, code, message = known
    return Observation(call, text, value, error_class(code)(message) if code else None)


def find(name: str, known: Mapping[str, Tool[..., Any]]) -> Tool[..., Any]:
    """The tool of that name; `InvalidValue` if there is none."""
    if name not in known:
        raise InvalidValue(f"there is no tool {name!r:.80}; there are {', '.join(known) or 'none'}")
    return known[name]


def by_name(tools: Iterable[Tool[..., Any]]) -> dict[str, Tool[..., Any]]:
    """Tools by their names; `InvalidPrimitive` for two of the same name, and what is no tool."""
    known: dict[str, Tool[..., Any]] = {}
    for one in tools:
        if not isinstance(one, Tool):
            raise InvalidPrimitive(f"{one!r:.80} is no tool; decorate the function with @tool", param="tools")
        if one.name in known:
            raise InvalidPrimitive(f"two tools are called {one.name!r}", param="tools")
        known[one.name] = one
    return known


def as_text(tool: str, value: object) -> str:
    """A tool's result as the model gets to see it: text as it is, anything else as JSON.

    Raises:
        ToolFailed: it has no JSON.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    try:
        return msgspec.json.encode(value, enc_hook=_dumped).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ToolFailed(
            f"tool {tool} returned {type(value).__name__}, which has no JSON: {error}"
        ) from error


def _dumped(value: Any) -> Any:
    """What msgspec does not know: a pydantic model's data."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no data")


def clip(text: str, most: int) -> str:
    """At most that many characters; the middle of a longer text is left out.

    Example:
        >>> clip("x" * 100, 40)
        'xxxxxx… 87 characters left out …xxxxxxx'
    """
    if len(text) <= most:
        return text
    note = f"… {len(text)} characters left out …"
    room = max(0, most - len(note))
    kept = text[: room // 2], text[len(text) - (room - room // 2) :]
    return f"{kept[0]}… {len(text) - room} characters left out …{kept[1]}"[:most]
