"""What a workload could reach at best: independent of scheduler and cache, and plain enough to be believed.

`optimum` has all the memory it wants. `offline` knows everything in advance: it runs one call after the other in depth-first order,
which loses nothing as long as the pool holds the longest call if calls do not wait for each other (SGLang paper, theorem 3.1).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from benchmarks.replay.engine import Call


class Node:
    """A cached token behind its parent's."""

    __slots__ = ("children", "parent", "token", "used")

    def __init__(self, token: int, parent: Node | None) -> None:
        self.token = token
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.used = 0


class TokenTrie:
    """A prefix cache of `capacity` tokens, used by one call after the other; the least recently used last token goes first."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.size = 0
        self._root = Node(-1, None)
        self._clock = 0
        self._pushes = 0
        self._leaves: list[tuple[int, int, Node]] = []

    def run(self, call: Call) -> int:
        """Compute the call; how many of its prompt tokens were there already."""
        self._clock += 1
        tokens, node, depth = call.computed, self._root, 0
        while depth < len(tokens) and (child := node.children.get(tokens[depth])) is not None:
            node, depth = child, depth + 1
            node.used = self._clock
        self._evict(self.size + len(tokens) - depth - self.capacity, node)
        for token in tokens[depth:]:
            node.children[token] = node = Node(token, node)
            node.used = self._clock
        self.size += len(tokens) - depth
        self._push(node)
        return min(depth, call.usable)

    def _evict(self, count: float, keep: Node) -> None:
        """Remove `count` tokens that the path to `keep` does not need."""
        while count > 0:
            used, _, node = heapq.heappop(self._leaves)
            if node.children or node is keep or node.used != used:
                continue  # out of date: whatever made it so has left a newer entry, or will
            parent = node.parent
            assert parent is not None
            del parent.children[node.token]
            node.used = -1
            self.size -= 1
            count -= 1
            if not parent.children:
                self._push(parent)

    def _push(self, node: Node) -> None:
        self._pushes += 1
        heapq.heappush(self._leaves, (node.used, self._pushes, node))


def depth_first(calls: Sequence[Call]) -> Iterator[Call]:
    """Calls that wait for none in the order of their prompts; right behind a call what it was the last to be waited for."""
    followers: list[list[int]] = [[] for _ in calls]
    missing = [len(call.after) for call in calls]
    for index, call in enumerate(calls):
        for before in call.after:
            followers[before].append(index)

    def backwards(ready: list[int]) -> list[int]:
        return sorted(ready, key=lambda index: calls[index].prompt, reverse=True)

    stack = backwards([index for index, count in enumerate(missing) if not count])
    while stack:
        index = stack.pop()
        yield calls[index]
        for follower in followers[index]:
            missing[follower] -= 1
        stack += backwards([follower for follower in followers[index] if not missing[follower]])


def offline(calls: Sequence[Call], capacity: float) -> float:
    """Hit rate of the depth-first order, one call at a time, with that many tokens of memory."""
    trie = TokenTrie(capacity)
    hits = sum(trie.run(call) for call in depth_first(calls))
    return hits / sum(len(call.prompt) for call in calls)


def optimum(calls: Sequence[Call]) -> float:
    """Best possible hit rate: nothing is ever forgotten."""
    return offline(calls, float("inf"))


def distinct(calls: Sequence[Call]) -> int:
    """Tokens of the trie of all calls, prompts and outputs."""
    trie = TokenTrie(float("inf"))
    for call in calls:
        trie.run(call)
    return trie.size


def quarter(calls: Sequence[Call], share: float = 0.25) -> int:
    """Pages of a pool for that share of the distinct tokens, or for the longest call if that is more."""
    return max(int(share * distinct(calls)), *(call.sequence_length for call in calls))
