"""Regular expressions as trees. `size` of a node is how many characters it has when its bounded repeats are written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sgl_actors.lang.constraints.characters import Characters
from sgl_actors.lang.constraints.grammar import Declined


@dataclass(frozen=True, slots=True)
class Text:
    """Exactly these characters, at least one."""

    text: str
    size: int


@dataclass(frozen=True, slots=True)
class OneOf:
    """One character of a set."""

    characters: Characters
    size: int = 1


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other; with no parts, the empty text."""

    parts: tuple[Node, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Either:
    """Any of the options, of which there are at least two."""

    options: tuple[Node, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """The body, `low` to `high` times (None: any number)."""

    body: Node
    low: int
    high: int | None
    size: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning or the end of the whole text."""

    end: bool
    size: int = 1


Node = Text | OneOf | Sequence | Either | Repeat | Anchor
"""A part of an expression. `size` is how many characters it has when its bounded repeats are written out."""

EMPTY: Final = Sequence((), 0)
"""The empty text."""


def sequence(parts: list[Node]) -> Node:
    """The parts one after the other."""
    parts = [part for part in parts if part is not EMPTY]
    if len(parts) == 1:
        return parts[0]
    return Sequence(tuple(parts), sum(part.size for part in parts)) if parts else EMPTY


def either(options: list[Node]) -> Node:
    """One of the options, of which there is at least one."""
    if len(options) == 1:
        return options[0]
    return Either(tuple(options), max(1, sum(option.size for option in options)))


def repeat(body: Node, low: int, high: int | None) -> Node:
    """The body that often; repeats of repeats become one where that says the same, so that each that is left doubles the size or more."""
    if body is EMPTY or (low, high) == (1, 1):
        return body
    if high == 0:
        return EMPTY
    if isinstance(body, Repeat) and body.low <= 1:
        times = None if high is None or body.high is None else high * body.high
        return Repeat(body.body, body.low * low, times, body.body.size * (times or max(body.low * low, 1)))
    return Repeat(body, low, high, body.size * (high or max(low, 1)))


def trimmed(node: Node, *, first: bool, last: bool) -> Node:
    """Without the anchors at its ends, if those are the first and the last of the whole text.

    Raises:
        Declined: an anchor elsewhere.
    """
    if isinstance(node, Anchor) and (last if node.end else first):
        return EMPTY
    if isinstance(node, Either):
        return either([trimmed(option, first=first, last=last) for option in node.options])
    if isinstance(node, Sequence) and node.parts:
        parts = list(node.parts)
        begin = _zero_width(parts)
        end = len(parts) - _zero_width(parts[::-1])
        return sequence([
            trimmed(part, first=first and at <= begin, last=last and at >= end - 1) for at, part in enumerate(parts)
        ])  # fmt: skip
    if isinstance(node, Anchor):
        raise Declined(f"{'an end' if node.end else 'a start'} anchor inside of the expression")
    if isinstance(node, Repeat):
        trimmed(node.body, first=False, last=False)
    return node


def _zero_width(parts: list[Node]) -> int:
    """How many parts at the front are anchors or empty."""
    return next(
        (at for at, part in enumerate(parts) if part is not EMPTY and not isinstance(part, Anchor)),
        len(parts),
    )
