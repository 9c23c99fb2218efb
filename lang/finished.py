"""What a program leaves behind (`FinishedState`), and its chat as messages."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Media, Slot, check_text
from sgl_actors.lang.results import Outcome, Usage, restore, unknown
from sgl_actors.lang.trace import Prices, Trace

T = TypeVar("T")


class FinishedState:
    """What a program leaves behind: plain values, nothing waits.

    Attributes:
        program: its name.
        value: what the body returned.
        seed: what it ran with; `run(seed=…)` repeats it.
        warnings: what went wrong beside it: that not all of a durable program is recorded.

    Example:
        >>> @function
        ... async def capital(s):
        ...     s += "The capital: " + gen("city")
        >>> state = await capital.run()
        >>> state["city"], state.text(), state.usage.calls
        ('Paris', 'The capital: Paris', 1)
    """

    def __init__(
        self,
        outcome: Outcome,
        program: str,
        value: Any = None,
        seed: int = 0,
        usage: Usage | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self._outcome, self._usage = outcome, usage
        self.program, self.value, self.seed, self.warnings = program, value, seed, list(warnings)

    def __repr__(self) -> str:
        return f"<FinishedState of {self.program}: {', '.join(self.variables) or 'no variables'}>"

    @overload
    def __getitem__(self, name: Slot[T]) -> T: ...
    @overload
    def __getitem__(self, name: str) -> Any: ...
    def __getitem__(self, name: str | Slot[Any]) -> Any:
        """Value of a variable; `UnknownVariable` if nothing defined it."""
        return self._outcome.variable(variable_name(name), self.program)

    def __contains__(self, name: object) -> bool:
        return name in self._outcome.variables

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcome.variables)

    @property
    def variables(self) -> dict[str, Any]:
        """All of them."""
        adapters = self._outcome.adapters
        return {
            name: restore(value, adapters.get(name, "")) for name, value in self._outcome.variables.items()
        }

    @property
    def usage(self) -> Usage:
        """Tokens and calls of the program, branches included, also those that failed or were cancelled."""
        return self._outcome.total if self._usage is None else self._usage

    @property
    def branches(self) -> list[list[FinishedState]]:
        """The branches of each fork, in order."""
        return [
            [FinishedState(b, self.program, seed=self.seed) for b in group]
            for group in self._outcome.branches.values()
        ]

    def text(self) -> str:
        """The prompt as the model saw it, with everything generated."""
        return self._outcome.text

    def messages(self) -> list[dict[str, Any]]:
        """The chat turns; with images, contents are lists of parts."""
        return as_messages(self._outcome)

    def trace(self, prices: Prices | None = None) -> Trace:
        """What the prompts of the program were made of, and what they cost, branches included."""
        return Trace(self._outcome, self.program, prices=prices)

    def meta(self, name: str | Slot[Any]) -> dict[str, Any]:
        """What the node reported about a variable: finish reason, tokens, scores."""
        name = variable_name(name)
        if name not in self._outcome.meta:
            raise unknown(name, self.program, self._outcome.stream, self._outcome.meta).error()
        return self._outcome.meta[name]

    get_meta_info = meta


def variable_name(name: str | Slot[Any]) -> str:
    """The name of a variable, or of a slot's; `InvalidPrimitive` for what has none."""
    found = name.name if isinstance(name, Slot) else name
    if not isinstance(found, str):
        what = (
            "this gen has no name"
            if isinstance(name, Slot)
            else f"a variable's name is a string, not {name!r:.80}"
        )
        raise InvalidPrimitive(f"s[…]: {what}", param="name")
    check_text("s[…]: the variable's name", found, "name")
    return found


def as_messages(outcome: Outcome) -> list[dict[str, Any]]:
    """Chat turns as clients of chat APIs write them."""
    return [
        {
            "role": role,
            "content": _parts(content, [(at, m) for turn, at, m in outcome.media if turn == index]),
        }
        for index, (role, content) in enumerate(outcome.turns)
    ]


def _parts(content: str, media: list[tuple[int, Media]]) -> str | list[dict[str, Any]]:
    """A turn's content: text, or parts of text and media in their order."""
    if not media:
        return content
    parts: list[dict[str, Any]] = []
    begin = 0
    for at, one in [*media, (len(content), None)]:
        if content[begin:at]:
            parts.append({"type": "text", "text": content[begin:at]})
        if one is not None:
            url = f"data:{one.media_type};base64,{b64encode(one.data).decode()}"
            parts.append({"type": f"{one.kind}_url", f"{one.kind}_url": {"url": url}})
        begin = at
    return parts
