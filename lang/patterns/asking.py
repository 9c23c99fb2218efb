"""Asking the model something about a state, in a branch: in turns of the chat where there are such, else in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sgl_actors.lang.primitives import assistant_begin, user
from sgl_actors.lang.state import ProgramState


@contextmanager
def given_up(branches: Iterable[ProgramState], reason: str = "the pattern was cancelled") -> Iterator[None]:
    """Cancel branches that nobody waits for any more, because what is inside raises or is cancelled: the program would wait for them at its end."""
    try:
        yield
    except BaseException:
        for branch in branches:
            branch.cancel(reason)
        raise


async def opened(s: ProgramState, count: int) -> list[tuple[ProgramState, bool]]:
    """Branches in which something is to be asked, and whether that is done in turns: `s` has some, or holds nothing yet."""
    turns = s.open_role is None and (bool(await s.messages()) or not await s.text())
    return [(branch, turns) for branch in s.fork(count)]


def ask(branch: ProgramState, text: str, *, turns: bool, lead: str = "Answer: ") -> None:
    """Ask; what is added next is the answer, which in plain text begins with `lead`."""
    branch += user(text) + assistant_begin() if turns else f"\n\n{text}\n{lead}"
