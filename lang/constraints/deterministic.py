"""From an expression's tree to a deterministic automaton over characters: Thompson's construction, repeats written out, and the subset construction.

Its alphabet are kinds of characters: those that no set of the expression tells apart. What it costs is counted, so that no expression costs more than `WORK`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from sgl_actors.lang.constraints.automaton import DEAD
from sgl_actors.lang.constraints.characters import Characters
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regex_tree import Either, Node, OneOf, Repeat, Sequence, Text
from sgl_actors.lang.constraints.utf8_automaton import checked

WORK: Final = 1_000_000
"""Steps of the subset construction, each a microsecond or less: nondeterministic states that it looks at, and what it writes."""

_ACCEPT: Final = 0
_SPLIT: Final = -1  # in place of a set: goes on without a character
_END: Final = -2  # in place of a set: nothing follows
Kinds = list[tuple[int, int, int]]
"""First and last code point, and the kind of those characters; ascending and apart."""


class _Budget:
    """Counts down from `WORK`."""

    def __init__(self) -> None:
        self._left = WORK

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise Declined(f"more than {WORK} steps to make it deterministic")


class _Nondeterministic:
    """Thompson's construction, from the end to the start. State 0 accepts; from every state that leads anywhere the end can be reached.

    Attributes:
        sets: the sets of characters that states read.
        reads: for each state the number of its set, `_SPLIT` or `_END`.
        leads: for each state those that come next.
        start: the first one; None if nothing matches.
        budget: what may be spent on making it deterministic.
    """

    def __init__(self, node: Node) -> None:
        self._numbers: dict[Characters, int] = {}
        self._classes: dict[int, int] = {}
        self.sets: list[Characters] = []
        self.reads = [_END]
        self.leads: list[list[int]] = [[]]
        self._closures: dict[int, frozenset[int]] = {}
        self.budget = _Budget()
        self.start = self._entry(node, _ACCEPT)

    def closure(self, state: int) -> frozenset[int]:
        """The states other than splits that it is at without a further character."""
        if (known := self._closures.get(state)) is None:
            seen, stack, found = {state}, [state], []
            while stack:
                one = stack.pop()
                if self.reads[one] != _SPLIT:
                    found.append(one)
                    continue
                fresh = [next_one for next_one in self.leads[one] if next_one not in seen]
                seen.update(fresh)
                stack += fresh
            self.budget.spend(len(seen))
            known = self._closures[state] = frozenset(found)
        return known

    def _add(self, reads: int, *leads: int) -> int:
        self.reads.append(reads)
        self.leads.append([*leads])
        return len(self.reads) - 1

    def _set(self, characters: Characters) -> int:
        number = self._numbers.setdefault(characters, len(self.sets))
        if number == len(self.sets):
            self.sets.append(characters)
        return number

    def _class(self, node: OneOf) -> int:
        """The set of a node; the hash of a large one is computed once for all its copies."""
        if id(node) not in self._classes:
            self._classes[id(node)] = self._set(node.characters)
        return self._classes[id(node)]

    def _entry(self, node: Node, behind: int) -> int | None:
        """Where the node begins if `behind` follows it; None if it matches nothing."""
        entry: int | None = behind
        match node:
            case Text(text):
                for one in reversed(text):
                    behind = self._add(self._set(((ord(one), ord(one)),)), behind)
                return behind
            case OneOf(characters):
                return self._add(self._class(node), behind) if characters else None
            case Sequence(parts):
                for part in reversed(parts):
                    if entry is None:
                        return None
                    entry = self._entry(part, entry)
                return entry
            case Either(options):
                entries = [
                    one for one in (self._entry(option, behind) for option in options) if one is not None
                ]
                return self._add(_SPLIT, *entries) if entries else None
            case Repeat(body, low, None):
                return self._unbounded(body, low, behind)
            case Repeat(body, low, high):
                assert high is not None
                return self._bounded(body, low, high, behind)
            case anchor:
                raise AssertionError(anchor)

    def _unbounded(self, body: Node, low: int, behind: int) -> int | None:
        again = self._add(_SPLIT, behind)
        entry = self._entry(body, again)
        if entry is None:
            return None if low else behind
        self.leads[again].append(entry)
        for _ in range(low - 1):
            entry = self._entry(body, entry)
            assert entry is not None
        return entry if low else again

    def _bounded(self, body: Node, low: int, high: int, behind: int) -> int | None:
        entry = behind
        for at in range(high, 0, -1):
            more = self._entry(body, entry)
            if more is None:
                return None if low else behind
            entry = more if at <= low else self._add(_SPLIT, more, behind)
        return entry


def _kinds(sets: list[Characters], budget: _Budget) -> tuple[Kinds, list[list[int]]]:
    """Kinds of characters, two of one kind being in the same sets, and for each set its kinds."""
    toggles: dict[int, int] = defaultdict(int)
    for number, characters in enumerate(sets):
        for low, high in characters:
            toggles[low] ^= 1 << number
            toggles[high + 1] ^= 1 << number
    known: dict[int, int] = {}
    found: Kinds = []
    inside = since = 0
    for at in sorted(toggles):
        if inside:
            found.append((since, at - 1, known.setdefault(inside, len(known))))
        inside ^= toggles[at]
        since = at
    of_set: list[list[int]] = [[] for _ in sets]
    for signature, kind in known.items():
        budget.spend(signature.bit_count())
        rest = signature
        while rest:
            lowest = rest & -rest
            of_set[lowest.bit_length() - 1].append(kind)
            rest ^= lowest
    return found, of_set


def deterministic(node: Node) -> tuple[Kinds, list[tuple[int, ...]], list[bool]]:
    """The automaton of a tree without anchors; from each of its states an accepting one can be reached.

    Returns:
        The kinds of characters, rows of next states by kind (0 is the start), and whether each accepts. No rows if nothing matches.

    Raises:
        Declined: more than `WORK` steps, or too many states.
    """
    machine = _Nondeterministic(node)
    budget = machine.budget
    kinds, of_set = _kinds(machine.sets, budget)
    if machine.start is None:
        return kinds, [], []
    count = 1 + max((kind for _, _, kind in kinds), default=-1)
    start = machine.closure(machine.start)
    numbers = {start: 0}
    rows: list[tuple[int, ...]] = []
    shared: dict[frozenset[int], tuple[list[int], list[list[int]]]] = {}
    queue = [start]
    for states in queue:
        by_set: dict[int, list[int]] = defaultdict(list)
        for state in states:
            if state != _ACCEPT:
                by_set[machine.reads[state]].append(machine.leads[state][0])
        sets = frozenset(by_set)
        if sets not in shared:
            shared[sets] = _places(sets, of_set, count)
            budget.spend(sum(len(of_set[one]) for one in sets))
        places, groups = shared[sets]
        targets: list[int] = []
        for group in groups:
            closures = [machine.closure(next_one) for one in group for next_one in by_set[one]]
            budget.spend(sum(map(len, closures)))
            following = closures[0].union(*closures[1:]) if len(closures) > 1 else closures[0]
            number = numbers.setdefault(following, len(numbers))
            if number == len(queue):
                queue.append(following)
            targets.append(number)
        targets.append(DEAD)
        budget.spend(count // 8 + 8)
        checked(len(queue), 1)
        rows.append(tuple([targets[place] for place in places]))
    return kinds, rows, [_ACCEPT in states for states in queue]


def _places(sets: frozenset[int], of_set: list[list[int]], count: int) -> tuple[list[int], list[list[int]]]:
    """Which of these sets have each kind of characters: for each kind the place in a list of groups of sets, -1 for none."""
    having: dict[int, list[int]] = defaultdict(list)
    for one in sorted(sets):
        for kind in of_set[one]:
            having[kind].append(one)
    known: dict[tuple[int, ...], int] = {}
    places = [-1] * count
    for kind, group in having.items():
        places[kind] = known.setdefault(tuple(group), len(known))
    return places, [list(group) for group in known]
