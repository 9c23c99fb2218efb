"""Minimal deterministic automata: by splitting what is not alike, and of finitely many words directly."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from sgl_actors.lang.constraints.automaton import DEAD
from sgl_actors.lang.constraints.utf8_automaton import STATES, declined

_Ids = np.ndarray[Any, np.dtype[np.int32]]


def minimal(rows: list[tuple[int, ...]], accepting: list[bool]) -> tuple[_Ids, list[bool]]:
    """The minimal automaton of the same language, its states in the order of a breadth-first walk.

    States start as two blocks and are split until no two of a block lead to different blocks. When a block splits, its largest part keeps the number, and only
    what leads to one of the others is looked at again, so each state is, for each of its targets, at most log2(states) times (Hopcroft's argument).

    Args:
        rows: for each state (0 is the start) the next one of each kind of character, or `DEAD`. From each an accepting one can be reached.
        accepting: for each state.

    Returns:
        [states, kinds] the rows, and whether each accepts.
    """
    leading_to: list[list[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for target in {*row} - {DEAD}:
            leading_to[target].append(state)
    block = [*map(int, accepting), DEAD]  # the last is that of `DEAD`
    members: list[set[int]] = [set(), set()]
    for state, one in enumerate(block[:-1]):
        members[one].add(state)
    changed = set(range(len(rows)))
    while changed:
        splits = _splits(changed, rows, block, members)
        moved: list[int] = []
        for number, parts in splits:
            for part in parts:
                members[number].difference_update(part)
                for state in part:
                    block[state] = len(members)
                members.append(set(part))
                moved += part
        changed = {state for one in moved for state in leading_to[one]}
    return _ordered(rows, accepting, block)


def _splits(
    changed: set[int], rows: list[tuple[int, ...]], block: list[int], members: list[set[int]]
) -> list[tuple[int, list[list[int]]]]:
    """The blocks whose states do not lead to the same blocks, and all their parts but the largest one.

    Only the states of `changed` may have come to differ; the others of a block still agree, so one of them speaks for all.
    """
    of_block: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for state in changed:
        if len(members[block[state]]) > 1:
            of_block[block[state]][tuple([block[target] for target in rows[state]])].append(state)
    found: list[tuple[int, list[list[int]]]] = []
    for number, parts in of_block.items():
        others = len(members[number]) - sum(map(len, parts.values()))
        alike: tuple[int, ...] = ()
        if others:
            one = next(state for state in members[number] if state not in changed)
            alike = tuple([block[target] for target in rows[one]])
            if len(parts) == 1 and alike in parts:
                continue
        largest = max(parts, key=lambda name: len(parts[name]))
        if others and others + len(parts.get(alike, ())) >= len(parts[largest]):
            largest = alike
        elif others and alike != largest:
            parts[alike] += [state for state in members[number] if state not in changed]
        parts.pop(largest, None)
        if parts:
            found.append((number, list(parts.values())))
    return found


def _ordered(rows: list[tuple[int, ...]], accepting: list[bool], block: list[int]) -> tuple[_Ids, list[bool]]:
    """One state of each block, renumbered."""
    order = {block[0]: 0}
    queue = [0]
    for state in queue:
        for target in dict.fromkeys(rows[state]):
            if target != DEAD and block[target] not in order:
                order[block[target]] = len(order)
                queue.append(target)
    numbers = [*(order[one] for one in block[:-1]), DEAD]
    table = [[numbers[target] for target in rows[state]] for state in queue]
    return np.array(table, np.int32).reshape(len(queue), -1), [accepting[state] for state in queue]


def acyclic(words: list[bytes]) -> tuple[list[dict[int, int]], list[bool]]:
    """The minimal automaton of words, sorted and without duplicates: for each state its edges by byte, and whether it accepts; 0 is the start.

    It is minimal at any time but for the word that came last (Daciuk et al., Incremental Construction of Minimal Acyclic Finite-State Automata,
    2000, algorithm 1).

    Raises:
        Declined: it has more than `STATES` states.
    """
    known: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}
    open_rows: list[dict[int, int]] = [{}]  # of the states that the last word went through
    open_ends = [False]
    last = b""

    def close(depth: int) -> None:
        while len(open_rows) > depth:
            state = open_ends.pop(), tuple(open_rows.pop().items())
            number = known.setdefault(state, len(known))
            if len(known) > STATES:
                raise declined(len(known))
            if open_rows:
                open_rows[-1][last[len(open_rows) - 1]] = number

    for word in words:
        common = next((at for at, (a, b) in enumerate(zip(word, last, strict=False)) if a != b), len(last))
        close(common + 1)
        last = word
        for _ in word[common:]:
            open_rows.append({})
            open_ends.append(False)
        open_ends[-1] = True
    close(0)
    start = len(known) - 1
    rows = [{byte: start - target for byte, target in row} for _, row in reversed(known)]
    return rows, [end for end, _ in reversed(known)]
