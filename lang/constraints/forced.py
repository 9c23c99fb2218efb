"""Jump-forward: tokens of the text that a constraint leaves no choice about, such as the tokenizer itself would choose.

Forced text has to become tokens together with what stands around it. On its left, the token that was sampled last may have to join it: ``{`` and ``"name"`` are
``{"`` and ``name"``. On its right, its last tokens may still be joined with whatever the model writes next, so they are **held back**.

What is certain follows from how byte-pair encoding works: a sequence of tokens is canonical if each two neighbours are, so the tokens before a border of an encoding
are the encoding of the text before it. However the text goes on, a token crosses the end of the forced text or none does. Of those that may (`Grammar.crossings`), the ones
that begin at a border of its encoding can follow what stands before that border; everything before the first such border is certain. What crosses from elsewhere is left out as
long as the end is a border; its text is then written with other tokens (`avoidable`). The end itself counts as a border only where some token can
follow it canonically: nothing but ``true`` and ``false`` may follow a space that is forced, so the space waits for `` true``.

So the ids are the same whether the certain tokens are appended at once or one by one, and where they depend on the model's choice the text is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sgl_actors.lang.constraints.grammar import Grammar, mask_words
from sgl_actors.lang.constraints.tokens import Tokens

Flags = np.ndarray[Any, np.dtype[np.bool_]]
_Places = np.ndarray[Any, np.dtype[np.intp]]
CONTEXT = 8
"""Tokens before that are encoded again, so that what depends on them comes out as in the whole text."""
FORESEEN = 1024
"""Bytes of forced text that are encoded at once; what is forced behind them comes with the next look."""
_FOLLOWED = 4096
"""Answers whether a token can follow that are kept."""


class Outlook(NamedTuple):
    """How the text `head` + what is forced behind it can be written.

    Attributes:
        certain: its first tokens, whatever follows; an end token among them if it is over.
        held_back: how many more there are that may still change.
        firsts: without certain ones, the first tokens that it can have besides those that begin with all of `text` and go on; None for any.
        text: its bytes.
    """

    certain: tuple[int, ...]
    held_back: int
    firsts: frozenset[int] | None
    text: bytes


class Forecast:
    """Says what is certain, for one vocabulary. One thread at a time may use it."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        texts = [tokens.raw[token] for token in tokens.sorted_ids]
        self._firsts = np.array([text[0] for text in texts], np.uint8)
        self._lengths = np.array([len(text) for text in texts], np.intp)
        self._followed = lru_cache(_FOLLOWED)(self._find_following)

    def __repr__(self) -> str:
        return f"<Forecast {self._tokens}>"

    def look_ahead(self, grammar: Grammar, recent: Sequence[int], head: bytes = b"") -> Outlook | None:
        """What is certain to follow `recent`.

        Args:
            grammar: where the output stands, `head` included.
            recent: output tokens before `head`; the last `CONTEXT` are of interest.
            head: the bytes of the token that was sampled last and may yet be replaced; b"" if there is none.

        Returns:
            None if nothing is forced, or it cannot be said what.
        """
        forced, over = grammar.forced()
        if len(forced) > FORESEEN:
            forced, over = forced[:FORESEEN], False
        text = head + forced
        context = self._context(recent, text) if forced or over else None
        whole = [] if context is None else self._encode(context, text)
        if context is None or (text and not whole):
            return None
        if over:
            end = self._tokens.eos_ids if len(self._tokens.eos_ids) == 1 else ()
            return Outlook((*whole, *end), 0, frozenset(), text)
        return self._outlook(grammar, context, whole, text, len(head))

    def fits(self, recent: Sequence[int], token: int) -> bool:
        """Whether `token` behind `recent` is what the tokenizer would make of their text; true where that cannot be said."""
        raw = self._tokens.raw
        piece = raw[token]
        if not piece or _whole(piece) != piece:
            return True
        for context in _ends(recent):
            before = b"".join([raw[one] for one in context])
            if _inside(before) or _whole(before) != before or not all(raw[one] for one in context):
                continue
            if self._tokens.encode(before) == context:
                return self._tokens.encode(before + piece) == [*context, token]
        return True

    def avoidable(self, last: int, token: int, allowed: Flags) -> bool:
        """Whether the text of `last` and `token` could have been begun with a token that holds all of `last` and more of it.

        Where it could not, a `token` that does not fit stands: the text would be lost otherwise.

        Args:
            last: the token before.
            token: one that does not fit behind it.
            allowed: flags of the tokens that may come behind `last`.
        """
        raw = self._tokens.raw
        before = raw[last]
        return any(
            allowed[rest]
            for longer in self._tokens.starting_with(before + raw[token][:1]).tolist()
            for rest in self._tokens.starting_with(raw[longer][len(before) :])[:1].tolist()
            if raw[rest] == raw[longer][len(before) :]
        )

    def unfit(self, recent: Sequence[int], token: int, allowed: Flags) -> list[int]:
        """Those of the `allowed` tokens (flags) that fit as little as `token`, which does not: it, and if that is so, all that begin with its character."""
        byte = self._tokens.raw[token][0]
        if byte < 0x80:
            group = [one for one in self._tokens.starting_with(bytes([byte])).tolist() if allowed[one]]
            longest = max(group, key=lambda one: len(self._tokens.raw[one]), default=token)
            if not any(self.fits(recent, one) for one in (*group[:1], longest)):
                return [token, *group]
        return [token]

    def touches(self, grammar: Grammar, token: int) -> bool:
        """Whether some of the bytes of `token`, the last one that `grammar` has taken, left no choice."""
        single = self._tokens.single
        walker = grammar.copy()
        walker.rollback(1)
        for byte in self._tokens.raw[token]:
            if walker.forced().data:
                return True
            if byte not in single:
                return False
            walker.advance(single[byte])
        return False

    def _outlook(
        self, grammar: Grammar, context: list[int], whole: list[int], text: bytes, head: int
    ) -> Outlook:
        """See `look_ahead`; something follows `text`, whose encoding is `whole`."""
        crossings = frozenset(grammar.crossings(text[:head], text[head:]))
        if not crossings:
            return Outlook(tuple(whole), 0, None, text)
        lengths = [len(self._tokens.raw[token]) for token in whole]
        starts = [sum(lengths[:place]) for place in range(len(whole))]
        places = [place for place, start in enumerate(starts) if start in crossings]
        partial = sum(lengths) < len(text)
        accepting, mask = (True, b"") if partial else self._behind(grammar, whole, started=head > 0)
        last = (*context, *whole)[-1:]
        is_border = accepting or self._followed(last, mask)
        if not places and not is_border:
            ways = [self._encode(context, text[:place]) for place in sorted(crossings)]
            return self._by_any_way(ways, whole, text)
        certain = whole[: places[0]] if places else whole
        later = is_border or len(places) > 1
        firsts = None if partial else frozenset(whole[:1] if later else ())
        return Outlook(tuple(certain), len(whole) - len(certain), firsts, text)

    @staticmethod
    def _by_any_way(ways: list[list[int]], whole: list[int], text: bytes) -> Outlook:
        """What `ways` have in common: encodings up to each place where the token that crosses has to begin, none of them a border of the whole text's."""
        certain = _common(ways)
        firsts = frozenset(way[0] for way in ways) if all(ways) else None
        return Outlook(tuple(certain), len(whole) - len(certain), None if certain else firsts, text)

    def _behind(self, grammar: Grammar, whole: list[int], *, started: bool) -> tuple[bool, bytes]:
        """Whether the output may end behind `whole`, and the mask there."""
        after = grammar.copy()
        if started:
            after.rollback(1)
        for token in whole:
            after.advance(token)
        row = np.zeros(mask_words(self._tokens.size), np.int32)
        after.mask_into(row)
        return after.is_accepting, row.tobytes()

    def _find_following(self, recent: tuple[int, ...], mask: bytes) -> bool:
        """Whether an allowed token fits behind `recent`."""
        return any(self._fits_some(recent, group) for group in self._groups(mask))

    def _groups(self, mask: bytes) -> list[_Places]:
        """Places in `sorted_ids` of the allowed tokens, by their first byte."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=self._tokens.size, bitorder="little")
        allowed = np.flatnonzero(bits[self._tokens.sorted_ids])
        edges = np.flatnonzero(np.diff(self._firsts[allowed])) + 1
        return [group for group in np.split(allowed, edges) if len(group)]

    def _fits_some(self, recent: tuple[int, ...], group: _Places) -> bool:
        """Whether one of the group fits behind `recent`: one of the shortest and one of the longest are tried."""
        ids = self._tokens.sorted_ids
        ends = {int(group[0]), int(group[self._lengths[group].argmax()])}
        return any(self.fits(recent, int(ids[place])) for place in ends)

    def _context(self, recent: Sequence[int], text: bytes) -> list[int] | None:
        """The longest end of `recent` that stays as it is when it is encoded with `text`; None if that begins inside of a character."""
        raw = self._tokens.raw
        for context in _ends(recent):
            joint = b"".join([raw[token] for token in context]) + text
            if _inside(joint) or not all(raw[token] for token in context):
                continue
            if self._tokens.encode(_whole(joint))[: len(context)] == context:
                return context
        return None if _inside(text) else []

    def _encode(self, context: list[int], text: bytes) -> list[int]:
        """Ids of `text` behind `context`, as far as it is whole characters; none if `context` changes."""
        before = b"".join([self._tokens.raw[token] for token in context])
        ids = self._tokens.encode(_whole(before + text))
        return ids[len(context) :] if ids[: len(context)] == context else []


def _ends(recent: Sequence[int]) -> Iterator[list[int]]:
    """Its ends that are not empty, from `CONTEXT` tokens on each half as long as the one before."""
    count = min(CONTEXT, len(recent))
    while count:
        yield list(recent[len(recent) - count :])
        count //= 2


def _common(ways: list[list[int]]) -> list[int]:
    shortest = min(ways, key=len, default=[])
    for place, token in enumerate(shortest):
        if any(way[place] != token for way in ways):
            return shortest[:place]
    return shortest


def _inside(data: bytes) -> bool:
    """Whether it begins inside of a character."""
    return bool(data) and data[0] & 0xC0 == 0x80


def _whole(data: bytes) -> bytes:
    """Without a character that has only begun."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data if length <= back else data[:-back]
    return data
