"""Which nodes of a search tree to expand next, without I/O.

A policy is told of every node that may be expanded (`add`) and asked for the next ones (`take`). It gives a node once, and only nodes it was told of; when
it gives none the search is over. What it will never give again it hands out as `dropped`. Equal values go by the order in which nodes were made,
so that a search depends on nothing but its answers and its seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sgl_actors.lang.patterns.result import Candidate


@dataclass(slots=True, eq=False)
class Node:
    """A state of the tree.

    Attributes:
        candidate: its branch, and what it came to.
        parent: None at the root.
        number: in the order of making, from 0 for the root.
        depth: 0 at the root.
        complete: it has no children and needs none.
        children: those that did not fail and are followed.
        cut: it leads nowhere; its branch was cancelled.
        visits, total: evaluations at it and below it, and the sum of their values (mcts).
        closed: nothing at it or below it is left to be expanded (mcts).
        logprobs: log probabilities of the tokens from the root to here, if they count.
    """

    candidate: Candidate[Any]
    parent: Node | None = None
    number: int = 0
    depth: int = 0
    complete: bool = False
    cut: bool = False
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    closed: bool = False
    logprobs: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        """Its score; 0 where none was asked for."""
        return self.candidate.score or 0.0

    def path(self) -> list[Node]:
        """From the root to it, both included."""
        return [*(self.parent.path() if self.parent else []), self]


def rank(node: Node) -> tuple[float, int]:
    """Sorts the best first, of equals the older."""
    return -node.value, node.number


class Policy(Protocol):
    """See the module. `dropped` holds nodes that the last `take` has given up."""

    dropped: list[Node]

    def add(self, parent: Node, children: Sequence[Node], /) -> None:
        """`parent` has been expanded; those of `children` that are not complete may be."""

    def take(self) -> list[Node]:
        """Nodes to be expanded at the same time; none when the search is over."""


class BreadthFirst:
    """Level by level; of each level the best `width` go on. A beam."""

    def __init__(self, root: Node, width: int) -> None:
        self.dropped: list[Node] = []
        self._level, self._width = [root], width

    def add(self, _parent: Node, children: Sequence[Node], /) -> None:
        """See `Policy.add`."""
        self._level += [child for child in children if not child.complete]

    def take(self) -> list[Node]:
        """See `Policy.take`."""
        level = sorted(self._level, key=rank)
        self._level = []
        self.dropped = level[self._width :]
        return level[: self._width]


class DepthFirst:
    """The best child first, down to the end; then back to the last one that was left."""

    def __init__(self, root: Node) -> None:
        self.dropped: list[Node] = []
        self._stack = [root]

    def add(self, _parent: Node, children: Sequence[Node], /) -> None:
        """See `Policy.add`."""
        self._stack += sorted((child for child in children if not child.complete), key=rank, reverse=True)

    def take(self) -> list[Node]:
        """See `Policy.take`."""
        return [self._stack.pop()] if self._stack else []


class BestFirst:
    """The best `width` of all that wait, wherever they are."""

    def __init__(self, root: Node, width: int) -> None:
        self.dropped: list[Node] = []
        self._waiting, self._width = [root], width

    def add(self, _parent: Node, children: Sequence[Node], /) -> None:
        """See `Policy.add`."""
        self._waiting += [child for child in children if not child.complete]

    def take(self) -> list[Node]:
        """See `Policy.take`."""
        self._waiting.sort(key=rank)
        taken, self._waiting = self._waiting[: self._width], self._waiting[self._width :]
        return taken


class MonteCarlo:
    """Monte Carlo tree search: from the root down to the child with the best upper confidence bound (UCT, Kocsis and Szepesvári 2006).

    A node's evaluation takes the place of a random play-out. Values are in [0, 1]. What is complete or a dead end is not visited again, so that
    a finite tree is searched to its end. Of equal bounds one is drawn with the seed.
    """

    def __init__(self, root: Node, exploration: float, seed: int) -> None:
        self.dropped: list[Node] = []
        self._root, self._exploration = root, exploration
        self._random = random.Random(seed)

    def add(self, parent: Node, children: Sequence[Node], /) -> None:
        """See `Policy.add`."""
        for child in children:
            child.closed = child.complete
            for node in child.path():
                node.visits += 1
                node.total += child.value
        for node in reversed(parent.path()):
            node.closed = all(child.closed for child in node.children)

    def take(self) -> list[Node]:
        """See `Policy.take`."""
        node = self._root
        while node.children and not node.closed:
            bounds = [(self._bound(node, child), child) for child in node.children if not child.closed]
            best = max(bound for bound, _ in bounds)
            node = self._random.choice([child for bound, child in bounds if bound == best])
        return [] if node.closed else [node]

    def _bound(self, parent: Node, child: Node) -> float:
        return child.total / child.visits + self._exploration * math.sqrt(
            math.log(parent.visits) / child.visits
        )
