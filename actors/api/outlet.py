"""What of an answer its asker has, and what waits until it is ready for more."""

from __future__ import annotations

from sgl_actors.actors.api.messages import Piece
from sgl_actors.actors.microkernel import Request
from sgl_actors.errors import SglActorsError


class Outlet:
    """Hands text out as it comes, if somebody reads it `live`; else none before the end.

    What was handed out stands. When the request is asked again, the new answer is handed out from where it goes beyond that, and if it begins otherwise,
    the request fails with what the try before failed with.

    Attributes:
        handed: what the asker has.
        failure: why the last try failed; None while there was none.
    """

    def __init__(self, request: Request, *, live: bool) -> None:
        self._request, self._live = request, live
        self._text = self.handed = ""
        self.failure: SglActorsError | None = None
        if live:
            request.on_credit(self._flush)

    def __repr__(self) -> str:
        return f"<Outlet {len(self.handed)} of {len(self._text)} characters>"

    def begin(self, failure: SglActorsError) -> None:
        """The answer comes anew, for it has failed."""
        self._text, self.failure = "", failure

    def write(self, piece: str) -> bool:
        """More text; False if it is not what was handed out."""
        self._text += piece
        self._flush()
        return self._text.startswith(self.handed[: len(self._text)])

    def _flush(self) -> None:
        more = self._text[len(self.handed) :]
        if self._live and more and self._text.startswith(self.handed) and self._request.item(Piece(more)):
            self.handed = self._text
