r"""Finds regular expressions that end an output (`stop_regex`), in text that arrives in pieces.

The output ends at the first character with which the text holds a match of any pattern; which pieces it came in makes no difference. (Of a pattern that
asks what follows or that nothing does, as ``$``, ``\b`` or look-ahead, the end of each piece counts as the end of the text.) Python's
syntax, over the `regex` library, whose partial matches tell exactly how much of the text's end may yet turn out to begin a match.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import regex  # type: ignore[import-untyped]

from sgl_actors.errors import InvalidRequest

SECONDS = 0.1
"""Time for one look at an output by one pattern; it usually takes microseconds."""
MAX_QUANTIFIERS = 16
"""Most ``*``, ``+`` and ``{`` of a pattern: nested, each of them doubles the time that the library takes to compile it."""
MAX_REPEATS = 10_000
"""Most that the counts in a pattern's braces may multiply to: the library writes nested ones out."""
FIELD = "stop_regex"


class Found(NamedTuple):
    """A match, from character `start` to `end` of the text; the text held it from character `complete` on."""

    complete: int
    start: int
    end: int
    pattern: str


@lru_cache(maxsize=1024)
def compile_pattern(source: str) -> Any:
    """The compiled pattern; may take 0.1 s for one that was made to be slow.

    Raises:
        InvalidRequest: it does not compile, matches the empty string, or has too many repetitions.
    """
    shown = f"{FIELD}: {source[:80]!r}"
    quantifiers = sum(map(source.count, "*+{"))
    if quantifiers > MAX_QUANTIFIERS:
        raise InvalidRequest(
            f"{shown} has {quantifiers} repetitions; at most {MAX_QUANTIFIERS} are taken", param=FIELD
        )
    counts = [
        max(map(int, found))
        for braces in re.findall(r"\{[^}]*\}", source)
        if (found := re.findall(r"\d{1,9}", braces))
    ]
    if prod(max(1, count) for count in counts) > MAX_REPEATS:
        raise InvalidRequest(
            f"{shown}: its counts multiply to more than {MAX_REPEATS:,}, the most that is taken", param=FIELD
        )
    try:
        pattern = regex.compile(source)
        empty = pattern.search("", timeout=SECONDS)
    except regex.error as error:
        raise InvalidRequest(f"{shown} does not compile: {error}", param=FIELD) from None
    except (RecursionError, OverflowError, ValueError, TimeoutError):
        raise InvalidRequest(f"{shown} does not compile: it is too complex", param=FIELD) from None
    if empty:
        raise InvalidRequest(
            f"{shown} matches the empty string, so every output would end at once", param=FIELD
        )
    return pattern


class StopPatterns:
    """Matcher over one output.

    Attributes:
        safe: characters at the text's beginning that belong to no match, however the text goes on.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        """Raises `InvalidRequest` as `compile_pattern` does."""
        self._patterns = [(source, compile_pattern(source)) for source in sources]
        self._from = [0] * len(sources)
        self.safe = 0

    def __repr__(self) -> str:
        return f"<StopPatterns {[source for source, _ in self._patterns]} safe={self.safe}>"

    def look(self, text: str, known: int, *, armed: bool = True) -> Found | None:
        """Look at the whole text so far, of which `known` characters had been looked at before; the first match, if there is one.

        A match that is complete while not `armed` is text as any other; one that only begins there still counts.

        Raises:
            InvalidRequest: a pattern takes too long.
        """
        found: Found | None = None
        for index, (source, pattern) in enumerate(self._patterns):
            match = self._search(index, pattern, text)
            while match is not None and not armed:
                self._from[index] = max(match.end(), match.start() + 1)
                match = self._search(index, pattern, text)
            if match is not None:
                one = self._first(source, pattern, text, known, self._from[index], match)
                found = one if found is None else min(found, one)
        self.safe = min(self._from, default=len(text))
        return found

    def _search(self, index: int, pattern: Any, text: str) -> Any:
        """The next match in the text; without one, note where one may begin."""
        match = _timed(pattern, text, self._from[index], len(text), partial=True)
        if match is None or match.partial:
            self._from[index] = len(text) if match is None else match.start()
            return None
        return match

    @staticmethod
    def _first(source: str, pattern: Any, text: str, known: int, begin: int, match: Any) -> Found:
        """The match with which the text first held one; `match` is that of all of it."""
        for complete in range(known + 1, len(text)):
            earlier = _timed(pattern, text, begin, complete, partial=False)
            if earlier is not None:
                return Found(complete, earlier.start(), earlier.end(), source)
        return Found(len(text), match.start(), match.end(), source)


def _timed(pattern: Any, text: str, begin: int, end: int, *, partial: bool) -> Any:
    try:
        return pattern.search(text, begin, end, partial=partial, timeout=SECONDS)
    except TimeoutError:
        raise InvalidRequest(
            f"{FIELD}: {pattern.pattern[:80]!r} takes more than {SECONDS:g} s on this output; write it so that it backtracks less",
            param=FIELD,
        ) from None
