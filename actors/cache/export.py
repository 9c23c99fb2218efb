"""What is cached, as it is at one moment, for whoever wants to read it at leisure.

A `Snapshot` has the edges of the tree (a microsecond each; their packed tokens are shared, not copied) and no longer depends on it.
From it, `exported` makes messages of bounded size, `blocks` the blocks with their digests, both only as far as somebody reads on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sgl_actors.actors.cache.blocks import BLOCK_BYTES, Change, root_digest, stored
from sgl_actors.actors.cache.messages import Edge, Exported, unpack
from sgl_actors.actors.cache.radix_tree import Node, RadixTree, Root

LONGEST_EDGE = 4096
"""Tokens of an exported edge at most; a longer one is told as several."""
TOKENS_PER_MESSAGE = 8192
EDGES_PER_MESSAGE = 512


class CopiedEdge(NamedTuple):
    """One edge as it was; `parent` is its parent's number, -1 at a root."""

    namespace: str
    parent: int
    key: bytes
    locks: int
    hits: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All edges of a moment, parents first."""

    edges: list[CopiedEdge]

    def exported(self) -> Iterator[Exported]:
        """The edges in messages of bounded size."""
        rows: list[Edge] = []
        tokens = 0
        for edge in self._short_edges():
            if rows and (tokens + len(edge.token_ids) > TOKENS_PER_MESSAGE or len(rows) == EDGES_PER_MESSAGE):
                yield Exported(rows)
                rows, tokens = [], 0
            rows.append(edge)
            tokens += len(edge.token_ids)
        if rows:
            yield Exported(rows)

    def blocks(self, revision: str) -> Iterator[Change]:
        """A "stored" for every block, parents first."""
        ends: list[tuple[bytes, bytes]] = []
        for edge in self.edges:
            if edge.parent < 0:
                parent, begun = root_digest(revision, edge.namespace), b""
            else:
                parent, begun = ends[edge.parent]
            key = begun + edge.key
            blocks = stored(edge.namespace, parent, key)
            yield from blocks
            ends.append((blocks[-1].digest if blocks else parent, key[len(blocks) * BLOCK_BYTES :]))

    def _short_edges(self) -> Iterator[Edge]:
        """Edges of at most `LONGEST_EDGE` tokens, numbered anew."""
        numbers: list[int] = []
        number = -1
        for edge in self.edges:
            parent = -1 if edge.parent < 0 else numbers[edge.parent]
            tokens = unpack(edge.key)
            for start in range(0, len(tokens), LONGEST_EDGE):
                number += 1
                part = tokens[start : start + LONGEST_EDGE]
                yield Edge(edge.namespace, number, parent, part, edge.locks, edge.hits)
                parent = number
            numbers.append(number)


def snapshot(tree: RadixTree, namespace: str | None = None) -> Snapshot:
    """The tree's edges as they are now, of one namespace or with None of all."""
    edges: list[CopiedEdge] = []
    stack: list[tuple[Node, int, str]] = [
        (root, -1, root.namespace) for root in tree.roots() if namespace in (None, root.namespace)
    ]
    while stack:
        node, parent, name = stack.pop()
        number = parent
        if not isinstance(node, Root):
            number = len(edges)
            edges.append(CopiedEdge(name, parent, node.key, node.locks, node.hits))
        stack.extend((child, number, name) for child in node.children.values())
    return Snapshot(edges)
