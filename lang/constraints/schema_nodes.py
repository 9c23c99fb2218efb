"""A JSON schema as a tree of what it allows, and the intersection of two such trees.

The rules are those of llguidance (its ``parser/src/json/schema.rs``), so that the regular expression made of a tree allows the very texts that it
allows: the order of properties is the order of keywords, ``oneOf`` has to be of alternatives that differ visibly, and a keyword concerns only
values of its type. What the rules make too intricate is declined.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from sgl_actors.lang.constraints.grammar import Declined

LITERAL: Final = "literal"
"""Rule of a string: this text."""
PATTERN: Final = "pattern"
"""Rule of a string: this regular expression occurs in it."""
FORMAT: Final = "format"
"""Rule of a string: this format."""
COMBINATIONS: Final = 2_000
"""Pairs of options that are intersected, at most."""


class Unsatisfiable(Exception):
    """No value satisfies a part of a schema, which need not be an error of the whole; the text says why."""


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""


@dataclass(frozen=True)
class Nothing:
    """No value, for this reason."""

    why: str


@dataclass(frozen=True)
class Null:
    """``null``."""


@dataclass(frozen=True)
class Boolean:
    """``true``, ``false``, or either of them (None)."""

    value: bool | None = None


@dataclass(frozen=True)
class Number:
    """A number between bounds (of floats), each stated as included, as excluded, or both."""

    integer: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    multiple_of: float | None = None

    @property
    def low(self) -> tuple[float | None, bool]:
        """The lower bound that holds, and whether it is included."""
        if self.above is not None and (self.minimum is None or self.above >= self.minimum):
            return self.above, False
        return self.minimum, True

    @property
    def high(self) -> tuple[float | None, bool]:
        """The upper bound that holds, and whether it is included."""
        if self.below is not None and (self.maximum is None or self.below <= self.maximum):
            return self.below, False
        return self.maximum, True


@dataclass(frozen=True)
class Text:
    """A string of so many characters, which all of `rules` (kind and source) allow."""

    shortest: int = 0
    longest: int | None = None
    rules: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Array:
    """An array; None for `items` means anything."""

    fewest: int = 0
    most: int | None = None
    prefix: tuple[Node, ...] = ()
    items: Node | None = None


@dataclass(frozen=True)
class Object:
    """An object; None for `others` means anything. `properties` stand in the order in which they are written."""

    properties: dict[str, Node] = field(default_factory=dict)
    patterns: dict[str, Node] = field(default_factory=dict)
    others: Node | None = None
    required: tuple[str, ...] = ()
    fewest: int = 0
    most: int | None = None


@dataclass(frozen=True)
class AnyOf:
    """What one of the options allows."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Reference:
    """What the definition of this name allows."""

    name: str


Node: TypeAlias = Anything | Nothing | Null | Boolean | Number | Text | Array | Object | AnyOf | Reference


def any_of(options: list[Node]) -> Node:
    """One of them, in the simplest form."""
    found: list[Node] = []
    for option in options:
        if isinstance(option, Anything):
            return option
        found += option.options if isinstance(option, AnyOf) else [option]
    return _chosen(found, "anyOf")


def one_of(options: list[Node]) -> Node:
    """Exactly one of them; declined where two might allow the same value."""
    possible = [option for option in options if not isinstance(option, Nothing)]
    for number, option in enumerate(possible):
        if not all(_disjoint(option, other) for other in possible[number + 1 :]):
            raise Declined("oneOf: its options might allow the same value")
    return _chosen(options, "oneOf")


def _chosen(options: list[Node], keyword: str) -> Node:
    possible = [option for option in options if not isinstance(option, Nothing)]
    if len(possible) > 1:
        return AnyOf(tuple(possible))
    if possible:
        return possible[0]
    return options[0] if options else Nothing(f"{keyword} is empty")


def intersection(one: Node, other: Node) -> Node:
    """What both allow. A reference is to be resolved before."""
    match one, other:
        case (Anything(), _):
            return other
        case (_, Anything()):
            return one
        case (Nothing(), _):
            return one
        case (_, Nothing()):
            return other
        case (AnyOf(options), _):
            if len(options) * (len(other.options) if isinstance(other, AnyOf) else 1) > COMBINATIONS:
                raise Declined(f"anyOf or enum: more than {COMBINATIONS} combinations")
            return any_of([intersection(option, other) for option in options])
        case (_, AnyOf(options)):
            return any_of([intersection(one, option) for option in options])
        case (Null(), Null()):
            return one
        case (Boolean(a), Boolean(b)):
            return (one if b is None else other) if a == b or None in (a, b) else Nothing("booleans differ")
        case (Number(), Number()):
            return _numbers(one, other)
        case (Text(), Text()):
            return Text(
                max(one.shortest, other.shortest),
                _least(one.longest, other.longest),
                tuple(dict.fromkeys(one.rules + other.rules)),
            )
        case (Array(), Array()):
            return _arrays(one, other)
        case (Object(), Object()):
            return _objects(one, other)
        case (Reference(), _) | (_, Reference()):
            raise Declined("$ref: it stands beside keywords that it has to be combined with")
        case _:
            return Nothing("types differ")


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _numbers(one: Number, other: Number) -> Number:
    if one.multiple_of is not None and other.multiple_of is not None and one.multiple_of != other.multiple_of:
        raise Declined("multipleOf: two of them at once")

    def pick(a: float | None, b: float | None, most: bool) -> float | None:
        known = [value for value in (a, b) if value is not None]
        return (max(known) if most else min(known)) if known else None

    return Number(
        one.integer or other.integer,
        pick(one.minimum, other.minimum, True),
        pick(one.maximum, other.maximum, False),
        pick(one.above, other.above, True),
        pick(one.below, other.below, False),
        one.multiple_of if one.multiple_of is not None else other.multiple_of,
    )


def _arrays(one: Array, other: Array) -> Array:
    size = max(len(one.prefix), len(other.prefix))
    rows = [[*part.prefix, *[_open(part.items)] * (size - len(part.prefix))] for part in (one, other)]
    return Array(
        max(one.fewest, other.fewest),
        _least(one.most, other.most),
        tuple(intersection(a, b) for a, b in zip(*rows, strict=True)),
        _both(one.items, other.items),
    )


def _objects(one: Object, other: Object) -> Node:
    if one.patterns or other.patterns:
        raise Declined("patternProperties: it stands beside keywords that it has to be combined with")
    names = dict.fromkeys((*one.properties, *other.properties))
    return checked(
        Object(
            {name: intersection(_property(one, name), _property(other, name)) for name in names},
            {},
            _both(one.others, other.others),
            tuple(dict.fromkeys(one.required + other.required)),
            max(one.fewest, other.fewest),
            _least(one.most, other.most),
        )
    )


def checked(found: Object) -> Node:
    """`found`, or nothing if its numbers of properties contradict each other."""
    if found.most is not None and found.most < max(found.fewest, len(found.required)):
        return Nothing("maxProperties is less than minProperties or than the number of required properties")
    return found


def _open(node: Node | None) -> Node:
    return Anything() if node is None else node


def _both(one: Node | None, other: Node | None) -> Node | None:
    if one is None or other is None:
        return other if one is None else one
    return intersection(one, other)


def _property(found: Object, name: str) -> Node:
    return found.properties[name] if name in found.properties else _open(found.others)


def _disjoint(one: Node, other: Node) -> bool:
    """Whether no value can satisfy both, as far as that is easy to see."""
    match one, other:
        case (Nothing(), _) | (_, Nothing()):
            return True
        case (Anything() | Reference(), _) | (_, Anything() | Reference()):
            return False
        case (Boolean(a), Boolean(b)):
            return None not in (a, b) and a != b
        case (AnyOf(options), _):
            return all(_disjoint(option, other) for option in options)
        case (_, AnyOf(options)):
            return all(_disjoint(one, option) for option in options)
        case (Text(rules=((kind, a),)), Text(rules=((other_kind, b),))) if kind == other_kind == LITERAL:
            return a != b
        case (Object(), Object()):
            if one.patterns or other.patterns:
                raise Declined("patternProperties: it stands inside of oneOf")
            names = (*one.required, *other.required)
            return any(_disjoint(_property(one, name), _property(other, name)) for name in names)
        case _:
            return type(one) is not type(other)
