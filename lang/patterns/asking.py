"""Asking the model something about a state, in a branch: in turns of the chat where there are such, else in plain text."""

from __future__ import annotations

from sgl_actors.lang.primitives import assistant_begin, user
from sgl_actors.lang.state import ProgramState


async def opened(s: ProgramState, count: int) -> list[tuple[ProgramState, bool]]:
    """Branches in which something is to be asked, and whether that is done in turns: `s` has some, or holds nothing yet."""
    turns = s.open_role is None and (bool(await s.messages()) or not await s.text())
    return [(branch, turns) for branch in s.fork(count)]


def ask(branch: ProgramState, text: str, *, turns: bool, lead: str = "Answer: ") -> None:
    """Ask; what is added next is the answer, which in plain text begins with `lead`."""
    branch += user(text) + assistant_begin() if turns else f"\n\n{text}\n{lead}"
