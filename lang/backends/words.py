"""The mock's tokenizer, and what a prompt shares with earlier ones.

A token is a word, a punctuation mark or a special token ``<|…|>``, with the white space before it. That is no model's
tokenizer; it is there so that usage, `max_tokens` and cached prefixes are numbers that a reader can count by hand.
More text changes at most the last `UNSTABLE` tokens of a text, so what grows is tokenised from there on.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from typing import Final

TOKEN: Final = re.compile(r"\s*<\|\w+\|>|\s*\w+|\s*[^\w\s]|\s+")
UNSTABLE: Final = 5
"""Tokens at the end that more text may change: the pieces of a special token without its last character, and one more."""


class Words:
    """Ids of tokens: equal for equal ones, whenever they are asked for."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<Words: {len(self._words)} known>"

    def ids(self, text: str) -> list[int]:
        """Of a text's tokens."""
        return self.ids_of(TOKEN.findall(text))

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """Of tokens."""
        known = self._ids
        return [known[token] if token in known else self._learn(token) for token in tokens]

    def text(self, ids: Iterable[int]) -> str:
        """The text that has those ids; `KeyError` for one that was never given out."""
        return "".join([self._words[token_id] for token_id in ids])

    def _learn(self, token: str) -> int:
        token_id = zlib.crc32(token.encode())
        while self._words.setdefault(token_id, token) != token:
            token_id += 1
        self._ids[token] = token_id
        return token_id


class Prompts:
    """Texts seen so far, each with the ends of its tokens (offsets in characters)."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._ends: dict[str, list[int]] = {"": []}

    def __repr__(self) -> str:
        return f"<Prompts: {len(self._texts)}>"

    def measure(self, text: str) -> tuple[list[int], int]:
        """Ends of its tokens, and how many of its leading tokens an earlier text begins with, the last one never counted."""
        known = self._ends.get(text)
        if known is not None:
            return known, max(len(known) - 1, 0)
        place = bisect_left(self._texts, text)
        length, near = max(
            [(_common(text, earlier), earlier) for earlier in self._texts[max(place - 1, 0) : place + 1]],
            default=(0, ""),
        )
        earlier = self._ends[near]
        ends, shared = grown(text, earlier, length)
        for one, two in zip(ends[shared:], earlier[shared:], strict=False):
            if one != two or one > length:
                break
            shared += 1
        return ends, min(shared, max(len(ends) - 1, 0))

    def add(self, text: str, ends: list[int]) -> None:
        """Remember it."""
        if text not in self._ends:
            self._ends[text] = ends
            insort(self._texts, text)


def grown(text: str, ends: Sequence[int], length: int) -> tuple[list[int], int]:
    """Ends of the tokens of `text`, whose first `length` characters are those of a text with `ends`; how many were taken from there."""
    kept = max(bisect_right(ends, length) - UNSTABLE, 0)
    start = ends[kept - 1] if kept else 0
    more = accumulate(map(len, TOKEN.findall(text, start)), initial=start)
    return [*ends[:kept], *islice(more, 1, None)], kept


def _common(one: str, two: str) -> int:
    """Length of the common prefix; by halves, because comparing slices is fast."""
    high = min(len(one), len(two))
    if one[:high] == two[:high]:
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle
    return low
