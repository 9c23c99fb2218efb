"""What a program leaves behind: outcomes, failures, usage. Plain data that travels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from sgl_actors.errors import SglActorsError, UnknownVariable, error_class
from sgl_actors.lang.ir import AnyNode, Media
from sgl_actors.lang.shape import decoder_of

TAIL = 160
"""Characters of the prompt that an error message shows."""


class Usage(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Tokens and calls; `cached_tokens` of the prompt tokens were not computed anew.

    The completions took `steps` forward passes: `sampled_tokens` were the model's choice, `forced_tokens` were left no choice by a constraint, and
    `held_back_tokens` of forced text were left to the model, as they might have been joined with what followed. `drafted_tokens` were
    guessed and checked, `accepted_tokens` of them were right and are among the sampled ones.
    Of an API model, `wasted_tokens` of the completion tokens were paid for and not used, `retries` are tries that failed, and `cost` is what its
    price table makes of it all.

    Example:
        >>> both = Usage(10, 4, 2, 1) + Usage(5, 5, 1, 1)
        >>> both.prompt_tokens, both.cached_tokens, both.completion_tokens, both.calls
        (15, 9, 3, 2)
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    steps: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0
    held_back_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    wasted_tokens: int = 0
    retries: int = 0
    cost: float = 0.0

    def __repr__(self) -> str:
        shown = [
            f"{name}={value if isinstance(value, int) else format(value, '.6g')}"
            for name, value in msgspec.structs.asdict(self).items()
            if value
        ]
        return f"Usage({', '.join(shown)})"

    def __add__(self, other: Usage) -> Usage:
        mine, its = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Usage(*(one + two for one, two in zip(mine, its, strict=True)))

    def __sub__(self, other: Usage) -> Usage:
        mine, its = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Usage(*(one - two for one, two in zip(mine, its, strict=True)))


class Segment(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A piece of a stream's prompt and where it came from.

    Attributes:
        kind: "given", "generated", "selected", "role" (a turn begins or ends; `name` is the role), "set", "fork" or "join".
        text: the piece; "" for what is no text.
        name: its variable, if it has one.
        prompt_tokens, cached_tokens, completion_tokens: of the calls that made it.
        calls: to the model.
        seconds: from when it was the stream's turn to do it until it was done.
        begun: seconds from the program's start.
        fork: of a fork or join, the number of the fork's node.
        steps, sampled_tokens, forced_tokens, held_back_tokens, drafted_tokens, accepted_tokens, wasted_tokens, retries, cost: as in `Usage`.
    """

    kind: str
    text: str = ""
    name: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0
    begun: float = 0.0
    fork: int = -1
    steps: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0
    held_back_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    wasted_tokens: int = 0
    retries: int = 0
    cost: float = 0.0

    @property
    def usage(self) -> Usage:
        """Of the calls that made it."""
        return Usage(*(getattr(self, name) for name in Usage.__struct_fields__))


class Failure(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Why a stream failed, in a form that travels.

    Attributes:
        code: of the error to raise.
        message: its text without place and prompt.
        program, stream, variable: where.
        tail: end of the prompt at that moment.
        cause_code, cause_message: what the node said, if it was the node.
        origin, number: the stream and the number of the primitive that failed; "" and -1 if it was none.
        line: where the program's code says it, as FILE:LINE; "" if that is not known.
    """

    code: str
    message: str
    program: str = ""
    stream: str = ""
    variable: str = ""
    tail: str = ""
    cause_code: str = ""
    cause_message: str = ""
    origin: str = ""
    number: int = -1
    line: str = ""

    def error(self) -> SglActorsError:
        """The exception to raise; each call makes a new one."""
        cls = error_class(self.code)
        error = cls(
            describe(self.message, self.program, self.stream, self.variable, self.tail, self.line),
            param=self.variable or None,
        )
        if self.cause_code:
            error.__cause__ = error_class(self.cause_code)(self.cause_message)
        return error


class Outcome(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What a stream holds.

    Attributes:
        stream: its path, "0" for the root, "0.2" for its third child.
        text: the prompt as the model saw it, with everything generated.
        turns: (role, content) of the chat turns.
        media: (turn, offset in its content, what) of images and videos; turn -1 is outside of turns.
        variables: by name.
        meta: what the node reported per variable.
        adapters: per variable of a type of its own, what makes its value of the text in `variables`.
        usage: of this stream alone.
        own: names that this stream set itself, in order.
        added: what a child added to the prompt since it was forked.
        branches: per fork, its children's outcomes; empty for children that have not been collected.
        failure: why it failed, None if it did not.
        segments: what its prompt was made of, in order; of a child, from the fork on.
    """

    stream: str
    text: str = ""
    turns: list[tuple[str, str]] = []
    variables: dict[str, Any] = {}
    meta: dict[str, dict[str, Any]] = {}
    usage: Usage = Usage()
    own: list[str] = []
    added: list[AnyNode] = []
    branches: dict[int, list[Outcome]] = {}
    failure: Failure | None = None
    segments: list[Segment] = []
    media: list[tuple[int, int, Media]] = []
    adapters: dict[str, str] = {}

    def walk(self) -> Iterator[Outcome]:
        """This outcome and all below it."""
        yield self
        for group in self.branches.values():
            for branch in group:
                yield from branch.walk()

    @property
    def total(self) -> Usage:
        """Usage of the whole subtree."""
        return sum((outcome.usage for outcome in self.walk()), Usage())

    def variable(self, name: str, program: str = "") -> Any:
        """Value of a variable; raises the stream's failure, or `UnknownVariable`."""
        if name in self.variables:
            return restore(self.variables[name], self.adapters.get(name, ""))
        raise (self.failure or unknown(name, program, self.stream, self.variables)).error()


def unknown(name: str, program: str, stream: str, known: Iterable[str]) -> Failure:
    """There is no such variable, and no primitive that will define it."""
    listed = ", ".join(sorted(set(known))) or "none"
    return Failure(
        UnknownVariable.code, f"no primitive defines variable {name!r}; it has: {listed}", program, stream
    )


EACH: Final = "each:"
"""Before the adapters of a list's items, as JSON."""


def each(adapters: Sequence[str]) -> str:
    """The adapter of a list whose items have adapters of their own."""
    return EACH + msgspec.json.encode(adapters).decode()


def restore(value: Any, adapter: str) -> Any:
    """The value that a text stands for, or values of a list of texts; what has no adapter (here) stays as it is."""
    if adapter.startswith(EACH):
        keys: list[str] = msgspec.json.decode(adapter.removeprefix(EACH), type=list[str])
        return [restore(item, key) for item, key in zip(value, keys, strict=True)]
    decode = decoder_of(adapter) if adapter else None
    if decode is None:
        return value
    if isinstance(value, list):
        return [restore(item, adapter) for item in value]
    return decode(value) if isinstance(value, str) else value


def restorable(adapter: str) -> bool:
    """Whether `restore` knows the adapter, in this process."""
    keys = (
        msgspec.json.decode(adapter.removeprefix(EACH), type=list[str])
        if adapter.startswith(EACH)
        else [adapter]
    )
    return all(not key or decoder_of(key) is not None for key in keys)


def describe(message: str, program: str, stream: str, variable: str, tail: str, line: str = "") -> str:
    """One line for people: place, message, tail of the prompt."""
    place = f"program {program!r}" if program else "program"
    if stream and stream != "0":
        place += f", branch {stream}"
    if variable:
        place += f", variable {variable!r}"
    if line:
        place += f", {line}"
    return f"{place}: {message}" + (f"; the prompt ends: {shorten(tail)!r}" if tail else "")


def shorten(text: str) -> str:
    """The last `TAIL` characters."""
    return text if len(text) <= TAIL else "…" + text[-TAIL:]
