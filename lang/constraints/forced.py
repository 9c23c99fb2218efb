"""Jump-forward: tokens of the text that a constraint leaves no choice about, such as the tokenizer itself would choose.

Forced text has to become tokens together with what stands around it. On its left, the token that was sampled last may have to join it: ``{`` and ``"name"`` are
``{"`` and ``name"``. On its right, its last tokens may still be joined with whatever the model writes next, so they are **held back**. What is certain
follows from how byte-pair encoding works: the tokens before a border of the canonical encoding are the canonical encoding of the text before that border. However the text goes on,
the last border up to the end of the forced text is that end or one of the places where an allowed token crosses it (`Grammar.crossings`); what the
encodings up to all of these begin with in common is certain, and if that is nothing, their first tokens and the tokens that cross the end from the start are all that can come.

So the ids are the same whether the certain tokens are appended at once or one by one, and where they depend on the model's choice the text is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sgl_actors.lang.constraints.grammar import Grammar
from sgl_actors.lang.constraints.tokens import Tokens

CONTEXT = 8
"""Tokens before that are encoded again, so that what depends on them comes out as in the whole text."""


class Outlook(NamedTuple):
    """How the text `head` + what is forced behind it can be written.

    Attributes:
        certain: its first tokens, whatever follows; an end token among them if it is over.
        held_back: how many more there are that may still change.
        firsts: without certain ones, the first tokens that it can have besides those that begin with all of `text` and go on; empty for any.
        text: its bytes.
    """

    certain: tuple[int, ...]
    held_back: int
    firsts: frozenset[int]
    text: bytes


def look_ahead(tokens: Tokens, grammar: Grammar, recent: Sequence[int], head: bytes = b"") -> Outlook | None:
    """What is certain to follow `recent`.

    Args:
        tokens: the vocabulary.
        grammar: where the output stands, `head` included.
        recent: output tokens before `head`; the last `CONTEXT` are of interest.
        head: the bytes of the token that was sampled last and may yet be replaced; b"" if there is none.

    Returns:
        None if nothing is forced, or it cannot be said what.
    """
    forced, over = grammar.forced()
    text = head + forced
    if not forced and not over:
        return None
    context = _context(tokens, recent, text)
    if context is None:
        return None
    before = b"".join(tokens.raw[token] for token in context)
    whole = _encode(tokens, context, before, text)
    if not whole and text:
        return None
    if over:
        end = tuple(tokens.eos_ids) if len(tokens.eos_ids) == 1 else ()
        return Outlook((*whole, *end), 0, frozenset(), text)
    positions = grammar.crossings(head, forced)
    ways = [whole, *(_encode(tokens, context, before, text[:position]) for position in positions if position)]
    certain = [] if 0 in positions else _common(ways)
    firsts: frozenset[int] = frozenset()
    if not certain and all(ways):
        firsts = frozenset(way[0] for way in ways)
    return Outlook(tuple(certain), len(whole) - len(certain), firsts, text)


def _context(tokens: Tokens, recent: Sequence[int], text: bytes) -> list[int] | None:
    """The longest end of `recent` that stays as it is when it is encoded with `text`; None if that begins inside of a character."""
    count = min(CONTEXT, len(recent))
    while True:
        context = list(recent[len(recent) - count :])
        joint = b"".join(tokens.raw[token] for token in context) + text
        if all(tokens.raw[token] for token in context) and not _inside(joint):
            if not context or tokens.encode(_whole(joint))[: len(context)] == context:
                return context
        elif not context:
            return None
        count //= 2


def _encode(tokens: Tokens, context: list[int], before: bytes, text: bytes) -> list[int]:
    """Ids of `text` behind `context`, as far as it is whole characters; none if `context` changes."""
    ids = tokens.encode(_whole(before + text))
    return ids[len(context) :] if ids[: len(context)] == context else []


def _common(ways: list[list[int]]) -> list[int]:
    shortest = min(ways, key=len)
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
