r"""From a deterministic automaton over characters to the one over the bytes of their UTF-8.

A state of the first becomes a state of the second, and between them come those that have read the front part of a character. What such a state does is a
*shape* (which continuation bytes lead where, with the places where characters end numbered) applied to targets, and there are few shapes: `[\\w]` has
some 300, however many states read it. Rows of the table are made shape by shape. If the first is minimal, so is the second, because a state between
depends on its shape and targets alone and is never like one at a character's end.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np

from sgl_actors.lang.constraints.automaton import DEAD, Automaton
from sgl_actors.lang.constraints.grammar import Declined

STATES: Final = 65_536
"""Most states of an automaton."""
CELLS: Final = 8_000_000
"""Most entries of an automaton's table, of 4 bytes each."""

_Ids = np.ndarray[Any, np.dtype[np.int32]]
_Keys = np.ndarray[Any, np.dtype[np.int64]]
_Value = tuple[int, tuple[int, ...]]  # a shape, and what its places stand for further up
_Run = tuple[int, int, _Value]  # first and last index, and where it leads

_LEAF: Final = -1  # the shape of a character's end: no byte, one place


def declined(states: int, classes: int = 1) -> Declined:
    """What to raise for an automaton of that many states and classes of bytes."""
    size = (
        f"more than {STATES} states" if states > STATES else f"{states} states of {classes} classes of bytes"
    )
    return Declined(f"{size} (the limits are {STATES} states and {CELLS} transitions)")


def checked(states: int, classes: int) -> None:
    """Raises `Declined` if that is more than `STATES` or `CELLS`."""
    if states > STATES or states * classes > CELLS:
        raise declined(states, classes)


class _Shapes:
    """Shapes by number, each after those that it leads to. Its 64 continuation bytes are numbers of `values`, -1 where none leads on."""

    def __init__(self) -> None:
        self._known: dict[tuple[_Run, ...], int] = {}
        self._numbers: dict[_Value, int] = {}
        self.values: list[_Value] = []
        self.bytes: list[list[int]] = []

    def number(self, value: _Value) -> int:
        """Of an interned value."""
        found = self._numbers.setdefault(value, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found

    def intern(self, runs: list[_Run]) -> _Value:
        """The value of a state with these runs of continuation bytes."""
        places: dict[int, int] = {}
        for _, _, (_, targets) in runs:
            for target in targets:
                places.setdefault(target, len(places))
        shape = tuple(
            (low, high, (of, tuple(places[one] for one in targets))) for low, high, (of, targets) in runs
        )
        found = self._known.setdefault(shape, len(self._known))
        if found == len(self.bytes):
            row = [-1] * 64
            for low, high, value in shape:
                row[low : high + 1] = [self.number(value)] * (high + 1 - low)
            self.bytes.append(row)
        return found, tuple(places)

    def shortened(self, runs: list[_Run]) -> list[_Run]:
        """The same one byte shorter: runs of indices without their last six bits."""
        short: list[_Run] = []
        block, inside = -1, list[_Run]()

        def close() -> None:
            if inside:
                _append(short, (block, block, self.intern(inside)))
                inside.clear()

        for low, high, value in runs:
            first, last = low >> 6, high >> 6
            if first != block:
                close()
                block = first
            if first == last:
                inside.append((low & 63, high & 63, value))
                continue
            inside.append((low & 63, 63, value))
            close()
            if last - first > 1:
                _append(short, (first + 1, last - 1, self.intern([(0, 63, value)])))
            block = last
            inside.append((0, high & 63, value))
        close()
        return short

    def leads(self, runs: list[_Run]) -> list[int]:
        """Bytes 192 to 255 of a state that reads these characters, all above ASCII: numbers of `values`, -1 where none leads on."""
        blocks = self.shortened(runs)
        found = [-1] * 64
        for length, first, last, mark in ((2, 0x2, 0x1F, 0), (3, 0x20, 0x3FF, 32), (4, 0x400, 0x43FF, 48)):
            part = [
                (max(a, first), min(b, last), value) for a, b, value in blocks if a <= last and b >= first
            ]
            for _ in range(length - 2):
                part = self.shortened(part)
            for low, high, value in part:
                found[mark + low : mark + high + 1] = [self.number(value)] * (high + 1 - low)
        return found


def _append(runs: list[_Run], run: _Run) -> None:
    if runs and runs[-1][1] + 1 == run[0] and runs[-1][2] == run[2]:
        run = (runs.pop()[0], *run[1:])
    runs.append(run)


class _Between:
    """The states inside of characters: for each shape the targets that it is applied to, and the number of its first state."""

    def __init__(self, shapes: _Shapes, ends: int) -> None:
        self._shapes = shapes
        self._wanted: dict[int, list[_Keys]] = defaultdict(list)
        self._keys: dict[int, _Keys] = {}
        self._tuples: dict[tuple[int, ...], int] = {}  # several targets have one key as well
        self._listed: list[tuple[int, ...]] = []
        self.first: dict[int, int] = {}
        self.targets: dict[int, _Ids] = {}
        self.states = ends

    def want(self, value: int, targets: _Ids) -> None:
        """The value is needed, for each row of targets of its places."""
        shape, places = self._shapes.values[value]
        if shape != _LEAF:
            self._wanted[shape].append(self._key(targets[:, places]))

    def number(self) -> None:
        """Number all that is wanted, and what it wants in turn; shapes lead to lower ones only."""
        for shape in range(len(self._shapes.bytes) - 1, -1, -1):
            if not (wanted := self._wanted.get(shape)):
                continue
            keys = np.unique(np.concatenate(wanted))
            self._keys[shape], self.first[shape] = keys, self.states
            self.states += len(keys)
            if self.states > STATES:
                raise declined(self.states)
            row = {*self._shapes.bytes[shape]} - {-1}
            places = {place for value in row for place in self._shapes.values[value][1]}
            single = len(places) == 1
            self.targets[shape] = np.array(
                keys[:, None] if single else [self._listed[key] for key in keys], np.int32
            )
            for value in row:
                self.want(value, self.targets[shape])

    def states_of(self, value: int, targets: _Ids) -> _Ids:
        """[rows, 1]: the state that each row of targets makes of the value, `DEAD` of -1."""
        if value < 0:
            return np.full((len(targets), 1), DEAD, np.int32)
        shape, places = self._shapes.values[value]
        if shape == _LEAF:
            return targets[:, places]
        at = np.searchsorted(self._keys[shape], self._key(targets[:, places]))
        return (at[:, None] + self.first[shape]).astype(np.int32)

    def rows(self, row: list[int], targets: _Ids) -> _Ids:
        """[rows, bytes] of the table, for a row of values and each row of targets."""
        distinct = sorted({*row})
        states = np.concatenate([self.states_of(value, targets) for value in distinct], axis=1)
        return states[:, [distinct.index(value) for value in row]]

    def _key(self, targets: _Ids) -> _Keys:
        if targets.shape[1] == 1:
            return targets[:, 0].astype(np.int64)
        keys = []
        for row in map(tuple, targets.tolist()):
            key = self._tuples.setdefault(row, len(self._listed))
            if key == len(self._listed):
                self._listed.append(row)
            keys.append(key)
        return np.array(keys, np.int64)


class _Alphabet:
    """Classes of bytes, 0 of those that lead nowhere."""

    def __init__(self) -> None:
        self.classes = np.zeros(256, np.uint8)
        self.count = 1

    def add(self, start: int, columns: list[tuple[int, ...]]) -> tuple[slice, list[int]]:
        """Classes for the bytes from `start` on, one for all with the same column; those with nothing but -1 lead nowhere.

        Returns:
            The new classes, and a byte of each relative to `start`.
        """
        members: dict[tuple[int, ...], int] = {}
        bytes_of: list[int] = []
        for at, column in enumerate(columns):
            if any(one >= 0 for one in column):
                known = members.setdefault(column, self.count + len(members))
                if known == self.count + len(bytes_of):
                    bytes_of.append(at)
                self.classes[start + at] = known
        before = self.count
        self.count += len(members)
        return slice(before, self.count), bytes_of


def byte_automaton(rows: _Ids, accepting: list[bool], runs: list[tuple[int, int, int]]) -> Automaton:
    """The automaton over bytes.

    Args:
        rows: [states, kinds of characters], the next state or `DEAD`; 0 is the start. No two columns are alike.
        accepting: for each state.
        runs: first and last code point, and kind; ascending and apart. Other characters lead nowhere.

    Raises:
        Declined: it is larger than `STATES` or `CELLS`.
    """
    shapes, alphabet = _Shapes(), _Alphabet()
    between = _Between(shapes, len(rows))
    alike = [(members, targets, shapes.leads(wide)) for members, targets, wide in _alike(rows, runs)]
    for _, targets, lead in alike:
        for value in {*lead} - {-1}:
            between.want(value, targets)
    between.number()
    ascii_kinds = [-1] * 128
    for low, high, kind in runs:
        for code in range(low, min(high + 1, 128)):
            ascii_kinds[code] = kind
    ascii_classes, of_ascii = alphabet.add(0, [(kind,) for kind in ascii_kinds])
    inner, of_inner = alphabet.add(
        128, list(zip(*(shapes.bytes[shape] for shape in between.first), strict=True))
    )
    leads, of_leads = alphabet.add(192, list(zip(*(lead for _, _, lead in alike), strict=True)))
    checked(between.states, alphabet.count)
    table = np.full((between.states, alphabet.count), DEAD, np.int32)
    table[: len(rows), ascii_classes] = rows[:, [ascii_kinds[byte] for byte in of_ascii]]
    for members, targets, lead in alike:
        table[members, leads] = between.rows([lead[byte] for byte in of_leads], targets)
    for shape, first in between.first.items():
        targets, row = between.targets[shape], shapes.bytes[shape]
        table[first : first + len(targets), inner] = between.rows([row[byte] for byte in of_inner], targets)
    ends = np.zeros(between.states, np.bool_)
    ends[: len(rows)] = accepting
    return Automaton(alphabet.classes, table, ends)


def _alike(rows: _Ids, runs: list[tuple[int, int, int]]) -> list[tuple[_Ids, _Ids, list[_Run]]]:
    """States that read characters beyond ASCII, those together that group them in the same way.

    Returns:
        For each group its states, [states, places] where they lead, and runs of characters with their place.
    """
    wide = [(max(low, 128), high, kind) for low, high, kind in runs if high >= 128]
    kinds = sorted({kind for _, _, kind in wide})
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    targets: list[list[int]] = []
    for state, row in enumerate(rows[:, kinds].tolist()):
        places = {
            target: place for place, target in enumerate(dict.fromkeys(one for one in row if one != DEAD))
        }
        targets.append(list(places))
        if places:
            groups[tuple(places.get(one, -1) for one in row)].append(state)
    found = []
    for places_of, members in groups.items():
        place = dict(zip(kinds, places_of, strict=True))
        merged: list[_Run] = []
        for low, high, kind in wide:
            if place[kind] >= 0:
                _append(merged, (low, high, (_LEAF, (place[kind],))))
        found.append(
            (np.array(members, np.int32), np.array([targets[one] for one in members], np.int32), merged)
        )
    return found
