"""What a `Pattern` is made of: frozen nodes, and what can be said of them without an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.typed import Adapter


@dataclass(frozen=True, slots=True)
class Regular:
    """A regular expression.

    Attributes:
        pattern: it; can be put before and behind others as it is.
        shown: how it was written.
        number: whether it stands for a number, not for text.
    """

    pattern: str
    shown: str
    number: type[int | float] | None = None


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON value.

    Attributes:
        form: what it has to be: a schema, or a regular expression if it has no structure.
        shown: of what, as it was written.
        type: what decodes it; None for plain data.
    """

    form: Constraint
    shown: str
    type: Adapter[Any] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Parts one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Maybe:
    """A part that may be left out."""

    part: Node


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part in several turns, at least `low` and at most `high` (None: any number), with `separator` between them."""

    part: Node
    low: int
    high: int | None
    separator: Node | None


@dataclass(frozen=True, slots=True)
class Named:
    """A part whose value becomes a variable."""

    part: Node
    name: str


Node: TypeAlias = Regular | Json | Row | Either | Maybe | Repeat | Named


def parts_of(node: Node) -> tuple[Node, ...]:
    """The nodes directly inside whose names count; those of a separator do not."""
    match node:
        case Row(parts) | Either(parts):
            return parts
        case Maybe(part) | Repeat(part) | Named(part):
            return (part,)
        case _:
            return ()


def names_of(node: Node) -> tuple[str, ...]:
    """Names of the parts, in order, each once."""
    own = (node.name,) if isinstance(node, Named) else ()
    return tuple(dict.fromkeys((*own, *(name for part in parts_of(node) for name in names_of(part)))))


def shown(node: Node) -> str:
    """As it was written."""
    match node:
        case Regular(_, text):
            return text
        case Json(_, text):
            return f"json({text})"
        case Row(parts):
            return " + ".join(
                f"({shown(part)})" if isinstance(part, Either) else shown(part) for part in parts
            )
        case Either(options):
            return " | ".join(map(shown, options))
        case Maybe(part):
            return f"optional({shown(part)})"
        case Repeat(part, low, high, separator):
            between = "" if separator is None else f", separator={shown(separator)}"
            return f"repeat({shown(part)}, min={low}, max={high}{between})"
        case Named(part, name):
            inner = f"({shown(part)})" if isinstance(part, Row | Either) else shown(part)
            return f"{inner}.named({name!r})"
