"""The fewest prompt tokens that a set of requests can be computed with: the optimum of a prefix cache.

A cache that forgets nothing, with pages of one token, asked in the best order, computes each distinct prefix once. Two rules add to that
and one takes away:

- a request computes at least its last prompt token, because the model has to say what comes after it; and where log probabilities of the
  prompt are asked for from token `start` on, it computes everything from `start - 1` on. So `select`, which scores each choice in a
  request of its own, computes the token before the choices once per choice;
- so a prefix's last token is computed once for every request that ends there;
- what a request has generated is cached as if it were prompt, but for the last token: nobody has fed that to the model.

Nothing is assumed about when requests arrive; where a real order cannot do as well (a prefix asked for before the output that makes it), the
optimum is better than what is possible, never worse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Call(NamedTuple):
    """One request as it was sent and answered.

    Attributes:
        prompt: its token ids.
        output: what it generated.
        start: first prompt token whose log probability was asked for, -1 for none.
        cached: prompt tokens that came from the cache, as the node says.
        hint: it only filled the cache for others.
    """

    prompt: list[int]
    output: list[int]
    start: int
    cached: int
    hint: bool

    @property
    def usable(self) -> int:
        """Leading prompt tokens that a cache can spare it."""
        last = len(self.prompt) - 1
        return last if self.start < 0 else min(last, max(0, self.start - 1))


def fewest_computed(calls: Iterable[Call]) -> int:
    """Prompt tokens that have to be computed for all of `calls`."""
    nodes: dict[tuple[int, int], int] = {}
    asked: set[int] = set()
    generated: set[int] = set()
    forced: Counter[int] = Counter()
    for call in calls:
        path, node = [], 0
        for token in (*call.prompt, *call.output[:-1]):
            node = nodes.setdefault((node, token), len(nodes) + 1)
            path.append(node)
        asked.update(path[: len(call.prompt)])
        generated.update(path[len(call.prompt) :])
        forced.update(path[call.usable : len(call.prompt)])
    return forced.total() + len(asked - generated - forced.keys())


def distinct_tokens(calls: Iterable[Call]) -> int:
    """Tokens of KV that a pool has to hold to forget nothing."""
    nodes: dict[tuple[int, int], int] = {}
    for call in calls:
        node = 0
        for token in (*call.prompt, *call.output[:-1]):
            node = nodes.setdefault((node, token), len(nodes) + 1)
    return len(nodes)
