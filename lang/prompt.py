"""The prompt of one stream: text and chat turns, and the exact text the model's chat template makes of them.

The template is asked for the *frame* alone: it renders the row of roles with a mark in place of each content, and the
pieces between the marks are kept. The prompt is those pieces with the contents put in as they were written and generated.
So the frame is exactly the template's, the text of a prompt depends on nothing but its nodes, it only ever grows at its
end (templates that rewrite history aside), and programs of one shape share one rendering.

An assistant turn that is being written begins with the template's generation prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import Media

Shape = tuple[tuple[str, ...], bool]
"""What is rendered: the roles, and whether the template's generation prompt follows."""


class Turn(msgspec.Struct):
    """One turn; `before` is text that stands outside any turn before it."""

    role: str
    content: str = ""
    before: str = ""


class Prompt(msgspec.Struct):
    """Finished turns, perhaps an open one, and text outside of turns.

    Attributes:
        turns: the chat.
        open: the last turn is still being written.
        after: text outside any turn after the last (all of a plain text prompt).
        media: images and videos: (turn, offset in its content, what); turn -1 is outside of turns.
    """

    turns: list[Turn] = []
    open: bool = False
    after: str = ""
    media: list[tuple[int, int, Media]] = []

    @property
    def empty(self) -> bool:
        """Whether nothing has been written yet."""
        return not self.turns and not self.after

    def copy(self) -> Prompt:
        """An independent prompt with the same content."""
        turns = [Turn(t.role, t.content, t.before) for t in self.turns]
        return Prompt(turns, self.open, self.after, list(self.media))

    @property
    def place(self) -> tuple[int, int]:
        """Where the next piece goes: the number of the open turn, -1 outside, and the offset in its text."""
        return (len(self.turns) - 1, len(self.turns[-1].content)) if self.open else (-1, len(self.after))

    def attach(self, media: Media) -> None:
        """Put an image or a video here."""
        self.media.append((*self.place, media))

    def cut(self, turn: int, start: int, end: int) -> None:
        """Take characters `start` to `end` out of a turn's content, or of the text after all turns (-1)."""
        if turn < 0:
            self.after = self.after[:start] + self.after[end:]
        else:
            content = self.turns[turn].content
            self.turns[turn].content = content[:start] + content[end:]

    def append(self, text: str) -> None:
        """Write on: into the open turn, else outside."""
        if self.open:
            self.turns[-1].content += text
        else:
            self.after += text

    def begin(self, role: str) -> None:
        """Open a turn; `InvalidPrimitive` inside another one."""
        if self.open:
            raise InvalidPrimitive(f"{role} turn opened inside the {self.turns[-1].role} turn")
        self.turns.append(Turn(role, "", self.after))
        self.after, self.open = "", True

    def end(self, role: str) -> None:
        """Close the open turn; `InvalidPrimitive` if there is none of that role."""
        if not self.open or self.turns[-1].role != role:
            raise InvalidPrimitive(
                f"{role} turn closed, but "
                + (f"{self.turns[-1].role} is open" if self.open else "no turn is open")
            )
        self.open = False

    def shapes(self) -> list[Shape]:
        """What has to be rendered to know the text; the last one is the whole."""
        if not self.turns:
            return []
        roles = tuple(turn.role for turn in self.turns)
        inner = [(roles[:i], False) for i, turn in enumerate(self.turns) if i and turn.before]
        return [*inner, self._shape(roles)]

    def text(self, frames: Mapping[Shape, tuple[str, ...]]) -> str:
        """The text for the model. `frames` holds the pieces of every shape of `shapes()` (see `split`)."""
        if not self.turns:
            return self.after
        roles = tuple(turn.role for turn in self.turns)
        pieces = frames[self._shape(roles)]
        parts: list[str] = []
        for index, turn in enumerate(self.turns):
            piece = pieces[index]
            if turn.before and index:
                tail = frames[roles[:index], False][-1]
                tail = tail if piece.startswith(tail) else ""
                parts += [tail, turn.before, piece[len(tail) :]]
            else:
                parts += [turn.before, piece]
            parts.append(turn.content)
        if not self.open:
            parts += [pieces[len(self.turns)], self.after]
        return "".join(parts)

    def sketch(self) -> str:
        """The prompt without its template, for messages to people."""
        return "".join(f"{t.before}{{{t.role}}}{t.content}" for t in self.turns) + self.after

    def messages(self) -> list[tuple[str, str]]:
        """(role, content) of the turns, the open one included."""
        return [(turn.role, turn.content) for turn in self.turns]

    def _shape(self, roles: tuple[str, ...]) -> Shape:
        if self.open and roles[-1] == "assistant" and len(roles) > 1:
            return roles[:-1], True
        return roles, False


def mark(index: int) -> str:
    """What stands in for the content of turn `index` while the template is asked for its frame."""
    return f"SGLTURN{index}MARK"


def split(text: str, shape: Shape) -> tuple[str, ...]:
    """Cut a rendering at its marks: len(roles) + 1 pieces.

    Raises:
        InvalidPrimitive: the template leaves a turn out or moves it.
    """
    pieces: list[str] = []
    rest = text
    for index, role in enumerate(shape[0]):
        before, found, rest = rest.partition(mark(index))
        if not found:
            raise InvalidPrimitive(
                f"the model's chat template has no place for the {role} turn in {' '.join(shape[0])}"
            )
        pieces.append(before)
    return (*pieces, rest)
