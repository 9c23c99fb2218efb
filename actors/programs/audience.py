"""Who follows what a stream writes: one variable while it is being written, or the whole prompt as it grows."""

from __future__ import annotations

from collections.abc import Callable

from sgl_actors.actors.microkernel import Request
from sgl_actors.actors.programs.messages import Piece


class Listener:
    """Hands text to whoever listens, as fast as it is taken. `name` "" is the whole prompt."""

    def __init__(self, name: str, request: Request) -> None:
        self.name, self.request = name, request
        self._waiting = self._shown = ""
        self._caught_up = False
        request.on_credit(self._flush)

    def piece(self, text: str) -> None:
        """More text; pieces that are not taken yet are put together."""
        self._waiting += text
        self._flush()

    def grow(self, text: str) -> None:
        """The whole prompt goes on with this; before `show` has said how it begins, `show` will have it, too."""
        if self._caught_up:
            self._shown += text
            self.piece(text)

    def show(self, prompt: str) -> None:
        """The whole prompt is this now; what is new of it is handed on."""
        kept = common(self._shown, prompt)
        self._shown, self._caught_up = prompt, True
        if kept < len(prompt):
            self.piece(prompt[kept:])

    def end(self) -> None:
        """It is complete."""
        self.request.end(Piece(self._waiting) if self._waiting else None)

    def _flush(self) -> None:
        if self._waiting and self.request.item(Piece(self._waiting)):
            self._waiting = ""


class Audience:
    """The listeners of one stream, and what it is writing."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._name: str | None = None
        self._pieces: list[str] = []

    def __repr__(self) -> str:
        return f"<Audience of {len(self._listeners)}, writing {self._name!r}>"

    @property
    def text(self) -> str:
        """What has been written of the variable that `begin` named."""
        return "".join(self._pieces)

    @property
    def follows_prompt(self) -> bool:
        """Whether somebody wants the whole prompt."""
        return any(not one.name for one in self._listeners)

    def follows(self, name: str | None) -> bool:
        """Whether somebody reads that variable, or the whole prompt, while it is being written."""
        return any(not one.name or one.name == name for one in self._listeners)

    def listen(self, name: str, request: Request) -> None:
        """Somebody follows, until the variable is complete, the stream's end, or their leaving."""
        listener = Listener(name, request)
        if name and name == self._name:
            listener.piece(self.text)
        self._listeners.append(listener)
        request.on_cancel(lambda: self._leave(listener))

    def begin(self, name: str | None) -> None:
        """A variable is being written from here on."""
        self._name, self._pieces = name, []

    def write(self, text: str) -> None:
        """More of it, which is also more of the prompt."""
        self._pieces.append(text)
        for listener in self._listeners:
            if not listener.name:
                listener.grow(text)
            elif listener.name == self._name:
                listener.piece(text)

    def tell(self, name: str, text: str) -> None:
        """A variable has a value, which is no part of the prompt."""
        self.begin(name)
        for listener in self._listeners:
            if listener.name == name:
                listener.piece(text)

    def show(self, prompt: str) -> None:
        """The prompt is this now."""
        for listener in self._listeners:
            if not listener.name:
                listener.show(prompt)

    def done(self) -> None:
        """What was being written is complete."""
        for listener in [one for one in self._listeners if one.name and one.name == self._name]:
            listener.end()
            self._leave(listener)
        self.begin(None)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Nothing more will be written: all get the error."""
        self.begin(None)
        for listener in self._listeners:
            listener.request.fail(error())
        self._listeners.clear()

    def close(self, error: Callable[[str], Exception]) -> None:
        """The stream has ended: who waits for a variable gets the error, the prompt is complete."""
        for listener in self._listeners:
            if listener.name:
                listener.request.fail(error(listener.name))
            else:
                listener.end()
        self._listeners.clear()

    def _leave(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)


def common(one: str, two: str) -> int:
    """Characters that both begin with; mostly one begins the other."""
    if two.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, two, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(two)))
