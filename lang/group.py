"""The branches of a fork (`ProgramGroup`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from sgl_actors.lang.arguments import check_name, flag
from sgl_actors.lang.caller import caller
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import APPEND, GATHER, JOIN_MODES, Join
from sgl_actors.lang.pending import Joined

if TYPE_CHECKING:
    from sgl_actors.lang.state import ProgramState


class ProgramGroup:
    """The branches of one fork. Iterate or index them; `group += x` adds to all of them.

    Example:
        >>> @function
        ... async def tips(s):
        ...     s += "Tips."
        ...     group = s.fork(2)
        ...     group += lambda index: f" Tip {index + 1}: " + gen("tip")
        ...     return await group.join("tip")
        >>> (await tips.run(backend=Mock({"tip": ["walk", "rest"]}))).value
        ['walk', 'rest']
    """

    def __init__(self, parent: ProgramState, number: int, states: list[ProgramState]) -> None:
        self._parent, self._number, self._states = parent, number, states
        self._joined = False

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self._states)

    def __getitem__(self, index: int) -> ProgramState:
        return self._states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        if self._states[index] is not state:
            raise InvalidPrimitive("a branch cannot be replaced; `group[i] += …` adds to it")

    def __iadd__(self, other: object) -> Self:
        """An expression for all, a list with one for each, or a function of the index."""
        if isinstance(other, list | tuple):
            if len(other) != len(self):
                raise InvalidPrimitive(f"group +=: {len(other)} expressions for {len(self)} branches")
            items = list(other)
        elif callable(other):
            items = [other(index) for index in range(len(self))]
        else:
            items = [other] * len(self)
        for state, item in zip(self._states, items, strict=True):
            state += item  # noqa: PLW2901 - adds to the branch in place
        return self

    def join(self, name: str | None = None, *, mode: str = GATHER, return_exceptions: bool = False) -> Joined:
        """Wait for the branches and collect; they take nothing more.

        Args:
            name: the variable to gather: a list with each branch's value is returned and set on the parent. Without it every variable that
                the branches set is gathered, and a dictionary returned.
            mode: "gather_variable", or "concate_and_append": what each branch added to its prompt is added to the parent's (and returned as a
                list of texts). Either may stand in the place of `name`, too.
            return_exceptions: a branch that failed fails nothing: with a `name`, its error is in its place (None, in the variable); else it
                is left out.

        Raises (when awaited, and at `run()`):
            PrimitiveFailed: a branch failed.
            UnknownVariable: a branch has no such variable.
        """
        if name in JOIN_MODES:
            name, mode = None, str(name)
        if name is not None:
            check_name("join", name)
        if mode not in JOIN_MODES:
            raise InvalidPrimitive(
                f"join: mode is one of {', '.join(JOIN_MODES)}, not {mode!r:.80}", param="mode"
            )
        if mode == APPEND and name is not None:
            raise InvalidPrimitive(f"join: {APPEND} collects text, no variable {name!r}", param="name")
        stream = self._parent._stream  # noqa: SLF001 - parent and group are one thing
        if mode == APPEND and any(state.open_role != self._parent.open_role for state in self._states):
            raise InvalidPrimitive(
                f"join: {APPEND} needs branches that leave turns open or closed as the parent does"
            )
        if self._joined:
            raise InvalidPrimitive("join: these branches have been joined already; fork anew")
        node = Join(self._number, name, mode, flag("join", "return_exceptions", return_exceptions))
        number = stream.join(node, [state._stream for state in self._states], caller())  # noqa: SLF001
        self._joined = True
        if mode == GATHER:
            self._parent._names.update({name} if name else set().union(*(s._names for s in self._states)))  # noqa: SLF001
        return Joined(stream, number)
