"""From a tree of parts to one constraint: a regular expression, a schema or a grammar.

llguidance reads a grammar in lexemes, each as long as it can be, and never goes back: after ``/.*/`` no other part would ever begin. So all
that is regular and stands together becomes one expression, in which there are no such seams, and a seam that is left (before JSON of
structure, or between alternatives that hold some) is checked: an expression must not be able to go on with what comes behind it.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import msgspec

from sgl_actors.lang.constraints import bytewise, schema
from sgl_actors.lang.constraints.constraint import JSON_FORM, LARK, REGEX, Constraint
from sgl_actors.lang.constraints.regular import any_of, group
from sgl_actors.lang.constraints.tree import Either, Json, Maybe, Named, Node, Regular, Repeat, Row, shown
from sgl_actors.lang.errors import InvalidPrimitive


def compose(node: Node) -> Constraint:
    """The constraint of a tree.

    Raises:
        InvalidPrimitive: the engine does not take it (it is too large, nothing can match), or it has a seam that would never be left.
    """
    found = _folded(node)
    match found:
        case Regular(pattern):
            constraint = Constraint(REGEX, pattern)
        case Json(form):
            constraint = form
        case _:
            _edges(found)
            constraint = Constraint(LARK, _grammar(found))
    if refusal := bytewise.refusal(constraint):
        raise InvalidPrimitive(f"{shown(node):.160} cannot be a constraint: {refusal}")
    return constraint


def _folded(node: Node) -> Node:
    """Without names, and with everything regular that stands together as one expression."""
    match node:
        case Named(part):
            return _folded(part)
        case Json(form) if form.kind == REGEX:
            return Regular(form.source, shown(node))
        case Row(parts):
            return _folded_row([_folded(part) for part in parts])
        case Either(options):
            folded = [_folded(option) for option in options]
            known = [option for option in folded if isinstance(option, Regular)]
            if len(known) == len(folded):
                return Regular(any_of(option.pattern for option in known), shown(node))
            return Either(tuple(folded))
        case Maybe(part):
            inner = _folded(part)
            return (
                Regular(f"{group(inner.pattern)}?", shown(node))
                if isinstance(inner, Regular)
                else Maybe(inner)
            )
        case Repeat(part, low, high, separator):
            return _folded_repeat(
                _folded(part), low, high, None if separator is None else _folded(separator), shown(node)
            )
        case _:
            return node


def _folded_row(parts: list[Node]) -> Node:
    row: list[Node] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Row) else (part,):
            last = row[-1] if row else None
            if isinstance(last, Regular) and isinstance(piece, Regular):
                row[-1] = Regular(last.pattern + piece.pattern, f"{last.shown} + {piece.shown}")
            else:
                row.append(piece)
    return row[0] if len(row) == 1 else Row(tuple(row))


def _folded_repeat(part: Node, low: int, high: int | None, separator: Node | None, written: str) -> Node:
    if not isinstance(part, Regular) or not isinstance(separator, Regular | None):
        return Repeat(part, low, high, separator)
    first = group(part.pattern)
    if separator is None:
        return Regular(first + _times(low, high), written)
    further = group(separator.pattern + part.pattern) + _times(
        max(low - 1, 0), None if high is None else high - 1
    )
    return Regular(first + further if low else f"{group(first + further)}?", written)


def _times(low: int, high: int | None) -> str:
    """So many turns, as expressions and grammars write it."""
    return f"{{{low},{'' if high is None else high}}}"


def _grammar(node: Node) -> str:
    """A folded tree in llguidance's Lark; each schema is a rule of its own, written once."""
    schemas: dict[str, str] = {}
    start = _rule(node, schemas)
    rules = (f"{name}: %json {_with_form(source)}" for source, name in schemas.items())
    return "\n".join((f"start: {start}", *rules))


def _rule(node: Node, schemas: dict[str, str]) -> str:
    match node:
        case Regular(pattern):
            return f"/{_in_slashes(pattern)}/" if pattern else '""'
        case Json(form):
            return schemas.setdefault(form.source, f"json_{len(schemas) + 1}")
        case Row(parts):
            return f"({' '.join(_rule(part, schemas) for part in parts)})"
        case Either(options):
            return f"({' | '.join(_rule(option, schemas) for option in options)})"
        case Maybe(part):
            return f"({_rule(part, schemas)})?"
        case Repeat(part, low, high, separator):
            turn = _rule(part, schemas)
            if separator is None:
                return f"({turn}){_times(low, high)}"
            further = f"({_rule(separator, schemas)} {turn}){_times(max(low - 1, 0), None if high is None else high - 1)}"
            return f"({turn} {further})" if low else f"({turn} {further})?"
        case _:
            raise AssertionError(node)


def _in_slashes(pattern: str) -> str:
    from llguidance import regex_to_lark

    return regex_to_lark(pattern, "")


def _with_form(source: str) -> str:
    """A schema that states its white space, which elsewhere the node does."""
    found = msgspec.json.decode(source)
    return schema.source({"x-guidance": JSON_FORM, **found})


class _Edges(NamedTuple):
    """What may stand first and last in what a node allows, and whether it allows nothing at all."""

    first: tuple[Node, ...]
    last: tuple[Node, ...]
    empty: bool


def _edges(node: Node) -> _Edges:
    """The edges of a folded node, with every seam inside checked."""
    match node:
        case Row(parts):
            edges = _Edges((), (), True)
            for part in parts:
                edges = _joined(edges, _edges(part))
            return edges
        case Either(options):
            found = [_edges(option) for option in options]
            firsts = tuple(leaf for edges in found for leaf in edges.first)
            lasts = tuple(leaf for edges in found for leaf in edges.last)
            return _Edges(firsts, lasts, any(edges.empty for edges in found))
        case Maybe(part):
            return _edges(part)._replace(empty=True)
        case Repeat(part, low, high, separator):
            turns = (part,) if high == 1 else (part, part) if separator is None else (part, separator, part)
            edges = _edges(Row(turns))
            return edges._replace(empty=edges.empty or not low)
        case Regular(pattern):
            return _Edges((node,), (node,), bytewise.accepts(Constraint(REGEX, pattern), b""))
        case _:
            return _Edges((node,), (node,), False)


def _joined(left: _Edges, right: _Edges) -> _Edges:
    for before, after in product(left.last, right.first):
        if isinstance(before, Regular):
            _check_seam(before, after)
    first = left.first + (right.first if left.empty else ())
    last = right.last + (left.last if right.empty else ())
    return _Edges(first, last, left.empty and right.empty)


def _check_seam(before: Regular, after: Node) -> None:
    """`InvalidPrimitive` if `before`, where it could end, could also go on with a character that `after` begins with."""
    first = bytewise.first_bytes(_constraint_of(after))
    pattern = _in_slashes(before.pattern)
    both = f"start: BOTH\nBOTH: /{pattern}/ & /{group(pattern)}{_class_of(first)}(?s:.*)/"
    if first and not bytewise.refusal(Constraint(LARK, both)):
        begins = " ".join(
            chr(value) if 0x20 < value < 0x7F else rf"\x{value:02x}" for value in sorted(first)[:8]
        )
        raise InvalidPrimitive(
            f"{before.shown:.160} can go on with what {shown(after):.160} begins with ({begins}), so no model would come to that: leave "
            "such characters out of the expression, or put a text between the two that it cannot go on with"
        )


def _constraint_of(leaf: Node) -> Constraint:
    if isinstance(leaf, Regular):
        return Constraint(REGEX, leaf.pattern)
    assert isinstance(leaf, Json)
    return leaf.form


def _class_of(first: frozenset[int]) -> str:
    """A class of the characters that begin with these bytes; of those beyond ASCII, all."""
    listed = "".join(rf"\x{value:02x}" for value in sorted(first) if value < 0x80)
    beyond = r"\x{80}-\x{10FFFF}" if any(value >= 0x80 for value in first) else ""
    return f"[{listed}{beyond}]"
