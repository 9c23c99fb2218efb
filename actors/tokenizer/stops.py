"""All that ends an output by its text: stop strings and stop patterns. What is complete first wins; at the same character, what begins first."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_actors.actors.tokenizer.stop_strings import StopStrings
from sgl_actors.lang.stop_patterns import StopPatterns


class Stops:
    """Matcher over one output; the interface of `StopStrings`.

    Attributes:
        matched: the stop string, or the source of the pattern, that ended the output; None until then.
    """

    def __init__(self, strings: Sequence[str], patterns: Sequence[str] = (), *, keep: bool = False) -> None:
        """Look for them; with `keep` what is found stays in the text. Raises `InvalidRequest` for a pattern that cannot be."""
        self._keep = keep
        self._patterns = StopPatterns(patterns) if patterns else None
        self._strings = StopStrings(strings, keep=keep or bool(patterns))
        self._matched: str | None = None
        self._text = ""  # all of it, if there are patterns
        self._safe = 0  # as far as stop strings are concerned
        self._given = 0

    def __repr__(self) -> str:
        return f"<Stops {self._strings!r} {self._patterns!r} matched={self.matched!r}>"

    @property
    def matched(self) -> str | None:
        """See the class."""
        return self._strings.matched if self._patterns is None else self._matched

    def feed(self, text: str, *, armed: bool = True) -> str:
        """Take more text; return what is now known not to belong to a match. See `StopStrings.feed`.

        Raises:
            InvalidRequest: a pattern takes too long.
        """
        if self._patterns is None:
            return self._strings.feed(text, armed=armed)
        if self._matched is not None or not text:
            return ""
        known = len(self._text)
        self._text += text
        self._safe += len(self._strings.feed(text, armed=armed))
        found = self._patterns.look(self._text, known, armed=armed)
        string = self._strings.matched
        if string is not None:
            begin = self._safe - len(string)
            if found is None or (self._safe, begin) <= found[:2]:
                return self._end(string, self._safe if self._keep else begin)
        if found is not None:
            return self._end(found.pattern, found.end if self._keep else found.start)
        return self._give(min(self._safe, self._patterns.safe))

    def finish(self) -> str:
        """The output has ended: return what was held back."""
        if self._patterns is None:
            return self._strings.finish()
        return "" if self._matched is not None else self._give(len(self._text))

    def _end(self, matched: str, end: int) -> str:
        self._matched = matched
        return self._give(end)

    def _give(self, end: int) -> str:
        """Text up to `end` that has not been returned yet."""
        begin, self._given = self._given, max(self._given, end)
        return self._text[begin:end]
