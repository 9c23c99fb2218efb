"""Where a text ends by its stop strings and expressions: the same rule for a mock's text, and for an API's, which may not know all of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import Chunk, SamplingOptions
from sgl_actors.lang.stop_patterns import StopPatterns


class Stop(NamedTuple):
    """The stop that is complete first.

    Attributes:
        keep: characters of the text that stay: up to the stop, or with it if it is not to be trimmed.
        start, end: where it stands.
        matched: the string or expression.
    """

    keep: int
    start: int
    end: int
    matched: str


def find_stop(text: str, sampling: SamplingOptions, known: int = 0) -> Stop | None:
    """The first stop in a text, or None. Of two that are complete at the same place, the longer one.

    Expressions are those of a node, with its bounds on what they may take; the first `known` characters are known to hold no stop.

    Raises:
        InvalidRequest: an expression makes no sense, or takes too long on this text.
    """
    found = [
        (at + len(stop), at, at + len(stop), stop) for stop in sampling.stop if (at := text.find(stop)) >= 0
    ]
    if sampling.stop_regex:
        match = StopPatterns(sampling.stop_regex).look(text, known)
        found += [] if match is None else [match]
    if not found:
        return None
    _, start, end, matched = min(found, key=lambda one: one[:2])
    return Stop(end if sampling.no_stop_trim else start, start, end, matched)


def sent(sampling: SamplingOptions, taken: Collection[str]) -> SamplingOptions:
    """Sampling as a model is asked that takes the arguments `taken`: what it cannot do with its stops is done by a `Cutter`."""
    if sampling.stop_regex and "stop_regex" not in taken:
        sampling = msgspec.structs.replace(sampling, stop_regex=())
    if sampling.no_stop_trim and "no_stop_trim" not in taken:
        sampling = msgspec.structs.replace(sampling, no_stop_trim=False, stop=())
    return sampling


def left_over(sampling: SamplingOptions, taken: Collection[str]) -> SamplingOptions:
    """Sampling as a `Cutter` is to cut by, of a model that takes the arguments `taken`.

    With `min_tokens` a stop that comes too early is none, which only who counts can tell: the stops that the model takes are left to it.
    """
    if not sampling.min_tokens:
        return sampling
    patterns = () if "stop_regex" in taken else sampling.stop_regex
    return msgspec.structs.replace(sampling, stop=(), stop_regex=patterns)


class Cutter:
    """Cuts a text that comes in pieces at its first stop, and holds back what may still become one.

    Attributes:
        text: all that came, what is behind the stop included.
        stop: it; None while there is none.
    """

    def __init__(self, sampling: SamplingOptions) -> None:
        self._sampling = sampling
        self._held = max(map(len, sampling.stop), default=1) - 1
        self.text = ""
        self.stop: Stop | None = None
        self._shown = 0

    def __repr__(self) -> str:
        return f"<Cutter {len(self.text)} characters, {'cut' if self.stop else 'open'}>"

    @property
    def kept(self) -> str:
        """The text up to its stop."""
        return self.text if self.stop is None else self.text[: self.stop.keep]

    def feed(self, piece: str) -> str:
        """More of it; what may be shown now. With expressions among the stops nothing is, before the end."""
        known = len(self.text)
        self.text += piece
        if self.stop is None:
            self.stop = find_stop(self.text, self._sampling, known)
        if self._sampling.stop_regex and self.stop is None:
            return ""
        return self._show(len(self.kept) - (0 if self.stop else self._held))

    def end(self) -> str:
        """It is complete; what had not been shown."""
        return self._show(len(self.kept))

    def finished(self, last: Chunk) -> Chunk:
        """The last chunk, as it would be of a model that had found the stop itself."""
        if self.stop is None:
            return last
        return msgspec.structs.replace(last, finish=Finish("stop", self.stop.matched))

    def _show(self, until: int) -> str:
        shown, self._shown = self._shown, max(self._shown, until)
        return self.kept[shown : self._shown]
