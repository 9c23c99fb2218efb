"""Finds stop strings in text that arrives in pieces.

The match that is complete first wins; of those complete at the same character, the longest. That depends on the text alone, so
borders of tokens and chunks do not matter. One Knuth-Morris-Pratt automaton per stop string: its state is how many of the
stop's characters the text ends with, which is also how many have to be held back.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Matcher over one output.

    Attributes:
        matched: the stop string that was found, None until then.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        """Look for `stops`, none of them empty; with `keep` the one found stays in the text."""
        self.matched: str | None = None
        self._keep = keep
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""

    def __repr__(self) -> str:
        return f"<StopStrings holding {len(self._held)} characters, matched={self.matched!r}>"

    def feed(self, text: str, *, armed: bool = True) -> str:
        """Take more text; return what is now known not to belong to a stop string.

        After a match, the text before it (or up to its end with `keep`) is returned and all that follows is dropped.
        A stop string that is complete while not `armed` is text as any other; one that only begins there still counts.
        """
        if self.matched is not None:
            return ""
        if not self._automata:
            return text
        buffer = self._held + text
        for position, character in enumerate(text, len(self._held) + 1):
            complete = [automaton.stop for automaton in self._automata if automaton.advance(character)]
            if complete and armed:
                self.matched = max(complete, key=len)
                self._held = ""
                return buffer[: position if self._keep else position - len(self.matched)]
        hold = max(automaton.held for automaton in self._automata)
        self._held = buffer[len(buffer) - hold :]
        return buffer[: len(buffer) - hold]

    def finish(self) -> str:
        """The output has ended: return what was held back."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """`state`: the longest beginning of `stop` that the text ends with, in characters."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.state = 0
        self._failure = [0] * len(stop)
        k = 0
        for i in range(1, len(stop)):
            while k and stop[i] != stop[k]:
                k = self._failure[k - 1]
            k += stop[i] == stop[k]
            self._failure[i] = k

    @property
    def held(self) -> int:
        """Characters at the end of the text that may yet turn out to begin the stop; one found earlier is not among them."""
        return self._failure[-1] if self.state == len(self.stop) else self.state

    def advance(self, character: str) -> bool:
        """Take one character; True when the stop string is complete."""
        stop, k = self.stop, self.state
        if k == len(stop):
            k = self._failure[k - 1]
        while k and stop[k] != character:
            k = self._failure[k - 1]
        self.state = k = k + (stop[k] == character)
        return k == len(stop)
