"""Which nodes are expanded next: each policy against a naive search of the same tree, without a model."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.lang.patterns.policies import (
    BestFirst,
    BreadthFirst,
    DepthFirst,
    MonteCarlo,
    Node,
    Policy,
)
from sgl_actors.lang.patterns.result import Candidate

Tree = tuple[float, list[Any]]
"""A value, and children."""

trees: st.SearchStrategy[Tree] = st.recursive(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.just([])),
    lambda below: st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.lists(below, max_size=3)),
    max_leaves=25,
)


class Searched:
    """Drives a policy over a tree; childless nodes are complete when they are made."""

    def __init__(self, tree: Tree) -> None:
        self.root = Node(Candidate(None))  # type: ignore[arg-type]
        self.trees = {self.root: tree}
        self.order: list[Tree] = []
        self.dropped: list[Node] = []

    def expand(self, policy: Policy, node: Node) -> None:
        self.order.append(self.trees[node])
        for tree in self.trees[node][1]:
            candidate: Candidate[Any] = Candidate(None, score=tree[0])  # type: ignore[arg-type]
            child = Node(candidate, node, len(self.trees), node.depth + 1, complete=not tree[1])
            self.trees[child] = tree
            node.children.append(child)
        policy.add(node, node.children)

    def run(self, policy: Policy, steps: int = 10_000) -> list[Tree]:
        """Trees of the expanded nodes, in order."""
        while (batch := policy.take()) and len(self.order) < steps:
            self.dropped += policy.dropped
            for node in batch:
                self.expand(policy, node)
        return self.order


def inner(tree: Tree) -> list[Tree]:
    """All that can be expanded below it, and itself."""
    return [tree, *(found for child in tree[1] if child[1] for found in inner(child))]


def same(one: list[Tree], two: list[Tree]) -> bool:
    return [id(tree) for tree in one] == [id(tree) for tree in two]


@given(trees, st.integers(1, 3))
def test_breadth_first_keeps_the_best_of_every_level(tree: Tree, width: int) -> None:
    """As a beam written down naively does; the rest of a level is dropped."""
    expected, level, left = [], [tree], 0
    while level:
        left += len(level[width:])
        level = level[:width]
        expected += level
        below = [child for parent in level for child in parent[1] if child[1]]
        level = sorted(below, key=lambda child: -child[0])
    search = Searched(tree)
    assert same(search.run(BreadthFirst(search.root, width)), expected)
    assert len(search.dropped) == left


@given(trees)
def test_depth_first_goes_down_the_best_child_and_comes_back(tree: Tree) -> None:
    """In the order of a recursion over children sorted by value."""

    def walk(tree: Tree) -> list[Tree]:
        below = sorted((child for child in tree[1] if child[1]), key=lambda child: -child[0])
        return [tree, *(found for child in below for found in walk(child))]

    search = Searched(tree)
    assert same(search.run(DepthFirst(search.root)), walk(tree))


@given(trees, st.integers(1, 3))
def test_best_first_takes_the_best_that_wait(tree: Tree, width: int) -> None:
    """Of all that have been made and not been expanded, wherever they are."""
    search = Searched(tree)
    policy = BestFirst(search.root, width)
    expanded: set[Node] = set()
    while batch := policy.take():
        waiting = [n for n in search.trees if n not in expanded and not n.complete]
        assert batch == sorted(waiting, key=lambda n: (-n.value, n.number))[:width]
        for node in batch:
            expanded.add(node)
            search.expand(policy, node)
    assert len(expanded) == len(inner(tree))


@given(trees, st.integers(0, 1000))
def test_monte_carlo_searches_a_finite_tree_to_its_end(tree: Tree, seed: int) -> None:
    """Whatever the seed: every node that has children is expanded once, and the counts at the root are those of all nodes."""
    search = Searched(tree)
    order = search.run(MonteCarlo(search.root, math.sqrt(2), seed))
    assert sorted(map(id, order)) == sorted(map(id, inner(tree)))
    made = [node for node in search.trees if node is not search.root]
    assert search.root.visits == len(made)
    assert search.root.total == pytest.approx(sum(node.value for node in made))
    assert search.root.closed


@given(trees, st.integers(0, 1000), st.sampled_from([0.0, 0.5, math.sqrt(2), 5.0]))
def test_monte_carlo_goes_down_the_best_bounds(tree: Tree, seed: int, exploration: float) -> None:
    """Each node taken lies at the end of a way of best bounds, with visits and values counted anew from the whole tree."""

    def below(node: Node) -> list[Node]:
        return [node, *(found for child in node.children for found in below(child))]

    def open_(node: Node) -> bool:
        return any(not n.complete and n not in expanded for n in below(node))

    def bound(parent: Node, child: Node) -> float:
        under, all_ = below(child), below(parent)[1:] + ([parent] if parent.parent else [])
        mean = sum(n.value for n in under) / len(under)
        return mean + exploration * math.sqrt(math.log(len(all_)) / len(under))

    search = Searched(tree)
    policy = MonteCarlo(search.root, exploration, seed)
    expanded: set[Node] = set()
    while batch := policy.take():
        (taken,) = batch
        for parent, child in zip(taken.path(), taken.path()[1:], strict=False):
            bounds = {one: bound(parent, one) for one in parent.children if open_(one)}
            assert bounds[child] == pytest.approx(max(bounds.values()))
        expanded.add(taken)
        search.expand(policy, taken)


def test_ties_are_drawn_with_the_seed() -> None:
    """The same seed searches in the same order; among seeds there are several orders."""
    tree: Tree = (0.0, [(0.5, [(0.5, [])] * 2) for _ in range(6)])
    orders = set()
    for seed in range(20):
        first, second = Searched(tree), Searched(tree)
        one = first.run(MonteCarlo(first.root, 1.0, seed))
        two = second.run(MonteCarlo(second.root, 1.0, seed))
        assert same(one, two)
        orders.add(tuple(map(id, one)))
    assert len(orders) > 5


def test_monte_carlo_spends_its_visits_where_values_are_high() -> None:
    """Of two equally large halves of a tree, most early visits go to the one with the better leaves; a random order would give half."""
    chance = random.Random(1)

    def half(mean: float, depth: int) -> Tree:
        value = min(1.0, max(0.0, chance.gauss(mean, 0.1)))
        return value, [half(mean, depth - 1) for _ in range(3)] if depth else []

    tree: Tree = (0.0, [half(0.3, 5), half(0.7, 5)])
    for seed in range(20):
        search = Searched(tree)
        search.run(MonteCarlo(search.root, 0.5, seed), steps=60)
        poor, good = search.root.children
        assert good.visits > 2 * poor.visits
