"""From a text that matches a tree of parts to the values of its named parts.

Every leaf asks the engine where it can end, so it reads what a model may write, and nothing else. For each node and place the ways to read on
are found once, one for each end, which keeps ambiguous trees from costing exponential time. The order of ways is that of a regular
expression: earlier parts as long as possible, alternatives in the order they are written in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from sgl_actors.lang.constraints import bytewise
from sgl_actors.lang.constraints.constraint import REGEX, Constraint
from sgl_actors.lang.constraints.tree import Either, Json, Maybe, Named, Node, Regular, Repeat, Row, names_of


class Found(NamedTuple):
    """How a node reads a stretch of a text (in bytes of UTF-8): by these parts in turn."""

    node: Node
    start: int
    end: int
    parts: tuple[Found, ...] = ()


class Reader:
    """One text, and what has been found out about it."""

    def __init__(self, text: str) -> None:
        self.data = text.encode()
        self._known: dict[tuple[int, int], dict[int, Found]] = {}

    def captures(self, node: Node) -> dict[str, Any] | None:
        """Values of the named parts if `node` reads the whole text, else None; raises `InvalidValue` for one that is none of its type."""
        found = self._ways(node, 0).get(len(self.data))
        return None if found is None else self._captures(found)

    def _ways(self, node: Node, start: int) -> dict[int, Found]:
        """The ways to read on from `start`, by where they end, the preferred first."""
        ways = self._known.get((id(node), start))
        if ways is None:
            ways = self._known[id(node), start] = {}
            for found in self._read(node, start):
                ways.setdefault(found.end, found)
        return ways

    def _read(self, node: Node, start: int) -> Iterator[Found]:
        match node:
            case Regular(pattern):
                yield from (
                    Found(node, start, end)
                    for end in bytewise.ends(Constraint(REGEX, pattern), self.data, start)
                )
            case Json(form):
                yield from (Found(node, start, end) for end in bytewise.ends(form, self.data, start))
            case Row(parts):
                rows: dict[int, tuple[Found, ...]] = {start: ()}
                for part in parts:
                    rows = self._longer(rows, part)
                yield from (Found(node, start, end, row) for end, row in rows.items())
            case Either(options):
                for option in options:
                    yield from (
                        Found(node, start, end, (way,)) for end, way in self._ways(option, start).items()
                    )
            case Maybe(part) | Named(part):
                yield from (Found(node, start, end, (way,)) for end, way in self._ways(part, start).items())
                if isinstance(node, Maybe):
                    yield Found(node, start, start)
            case Repeat():
                yield from self._read_turns(node, start)

    def _longer(self, rows: dict[int, tuple[Found, ...]], part: Node) -> dict[int, tuple[Found, ...]]:
        longer: dict[int, tuple[Found, ...]] = {}
        for at, row in rows.items():
            for end, way in self._ways(part, at).items():
                longer.setdefault(end, (*row, way))
        return longer

    def _read_turns(self, node: Repeat, start: int) -> Iterator[Found]:
        """Turn by turn; once there are enough, a place that was reached by fewer turns is not gone on from again.

        The beginning is no such place: it is gone on from without a separator.
        """
        rows: dict[int, tuple[Found, ...]] = {start: ()}
        enough: dict[int, tuple[Found, ...]] = {}
        reached: set[int] = set()
        turn = 0
        while rows:
            if turn >= node.low:
                rows = {at: row for at, row in rows.items() if at not in reached}
                reached |= rows.keys() if turn else set()
                enough = rows | enough
            if turn == node.high:
                break
            if turn and node.separator is not None:
                rows = {end: row[:-1] for end, row in self._longer(rows, node.separator).items()}
            rows = self._longer(rows, node.part)
            turn += 1
        for end in sorted(enough, reverse=True):
            yield Found(node, start, end, enough[end])

    def _value(self, found: Found) -> Any:
        text = self.data[found.start : found.end].decode()
        match found.node:
            case Regular(_, _, number):
                return text if number is None else number(text)
            case Json(_, _, type_):
                return msgspec.json.decode(text) if type_ is None else type_.decode_json(text)
            case Either() | Named():
                return self._value(found.parts[0])
            case Maybe():
                return self._value(found.parts[0]) if found.parts else None
            case _:
                return text

    def _captures(self, found: Found) -> dict[str, Any]:
        inner = [self._captures(part) for part in found.parts]
        names = names_of(found.node)
        if isinstance(found.node, Repeat):
            return {name: [turn[name] for turn in inner] for name in names}
        values: dict[str, Any] = dict.fromkeys(names)
        if isinstance(found.node, Named):
            values[found.node.name] = self._value(found)
        for part in inner:
            values |= part
        return values
