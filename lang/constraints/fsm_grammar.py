"""`Grammar` over an automaton: the compressed finite state machine of the paper, with masks worked out as they are asked for.

A chain of states that neither accept nor have a choice is one edge of forced text. The mask of a state is found by walking the token trie and the automaton side by
side, level by level; it is kept, so that whoever comes to the state again copies one row. All of this belongs to the automaton and is shared by its grammars.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.automaton import DEAD, Automaton
from sgl_actors.lang.constraints.grammar import Forced, Mask
from sgl_actors.lang.constraints.tokens import Tokens, packed

MASK_BYTES = 32 << 20
"""Masks that are kept, over all automata of a vocabulary."""
_CROSSINGS = 4096
"""Answers of `crossings` that are kept, per automaton."""


class Masks:
    """The masks that were asked for last, of any number of automata. Any number of threads may use it."""

    def __init__(self, budget: int = MASK_BYTES) -> None:
        """Keep at most `budget` bytes."""
        self._budget = budget
        self._held = 0
        self._rows: OrderedDict[tuple[int, int], Mask] = OrderedDict()
        self._lock = Lock()
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<Masks {len(self._rows)}, {self._held} of {self._budget} bytes>"

    def number(self) -> int:
        """A number for an automaton, to ask with."""
        return next(self._numbers)

    def get(self, automaton: int, state: int, make: Callable[[int], Mask]) -> Mask:
        """The mask of a state, made if it is not there; nobody writes to it."""
        key = automaton, state
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                self._rows.move_to_end(key)
                return row
        row = make(state)
        with self._lock:
            if key not in self._rows:
                self._rows[key] = row
                self._held += row.nbytes
            while self._held > self._budget:
                _, oldest = self._rows.popitem(last=False)
                self._held -= oldest.nbytes
        return row


class Edges:
    """The compressed edges of an automaton: chains of states that do not accept and that one byte alone leads out of.

    Attributes:
        inner: how many states lie on them, all but their last; without these, the automaton is compressed.
    """

    def __init__(self, automaton: Automaton, widths: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        """`widths`: for each state how many bytes can come next."""
        single = np.flatnonzero(~automaton.accepting & (widths == 1))
        rows = automaton.table[single]
        byte_of = np.zeros(automaton.table.shape[1], np.uint8)
        byte_of[automaton.classes[::-1]] = np.arange(255, -1, -1)
        byte = dict(zip(single.tolist(), byte_of[rows.argmax(1)].tolist(), strict=True))
        following = dict(zip(single.tolist(), rows.max(1, initial=DEAD).tolist(), strict=True))
        arriving = np.bincount(rows.max(1, initial=0), minlength=len(widths))[single]
        heads = set(single[arriving != 1].tolist())  # where several edges meet, one begins
        place = np.full(len(widths), -1, np.int32)
        text = bytearray()
        self.inner = len(single)
        self._stops = list[int]()  # where each edge ends in the text of all
        self._targets = list[int]()
        for head in heads:
            state = head
            while state in following and (state == head or state not in heads):
                place[state] = len(text)
                text.append(byte[state])
                state = following[state]
            self._stops.append(len(text))
            self._targets.append(state)
        self._text = bytes(text)
        self._place = place.data

    def __repr__(self) -> str:
        return f"{len(self._stops)} edges of forced text over {self.inner} of them"

    def follow(self, state: int) -> tuple[bytes, int]:
        """The text that is forced in a state, and the state behind it."""
        text = b""
        while (place := self._place[state]) >= 0:
            edge = bisect_right(self._stops, place)
            text += self._text[place : self._stops[edge]]
            state = self._targets[edge]
        return text, state


class Fsm:
    """An automaton over a vocabulary: what all grammars of it share. Any number of threads may use it.

    Attributes:
        tokens: the vocabulary.
        kind: the constraint's, for errors.
        accepting: for each state whether the output may end there.
        width: for each state how many bytes can come next.
        edges: its forced text.
    """

    def __init__(self, tokens: Tokens, automaton: Automaton, kind: str, masks: Masks) -> None:
        automaton = _writable(automaton, tokens)
        self.tokens = tokens
        self.kind = kind
        self.accepting = automaton.accepting.tobytes()
        sizes = np.bincount(automaton.classes, minlength=automaton.table.shape[1])
        widths = ((automaton.table != DEAD) @ sizes).astype(np.int32)
        self.width = widths.data
        self.edges = Edges(automaton, widths)
        self._columns = automaton.table.shape[1]
        self._classes = automaton.classes.tobytes()
        self._class_of = automaton.classes.astype(np.intp)
        small = np.int16 if len(automaton.table) < 1 << 15 else np.int32
        self._table = automaton.table.astype(small).reshape(-1)
        self._next = self._table.data
        self._masks, self._number = masks, masks.number()
        self._crossings: dict[tuple[int, bytes], bool] = {}

    @property
    def weight(self) -> int:
        """Bytes, roughly."""
        return self._table.nbytes + 16 * len(self.accepting)

    def __repr__(self) -> str:
        return f"<Fsm {len(self.accepting)} states, {self.edges}>"

    def step(self, state: int, data: bytes) -> int:
        """The state after `data`, or `DEAD`."""
        following, classes, columns = self._next, self._classes, self._columns
        for byte in data:
            state = following[state * columns + classes[byte]]
            if state < 0:
                return DEAD
        return state

    def matches(self, text: str) -> bool:
        """Whether `text`, as a whole, is allowed."""
        try:
            state = self.step(0, text.encode())
        except UnicodeEncodeError:
            return False
        return state != DEAD and bool(self.accepting[state])

    def mask(self, state: int) -> Mask:
        """Which tokens may come next; nobody writes to it.

        Raises:
            InvalidRequest: there is none.
        """
        return self._masks.get(self._number, state, self._mask)

    def ends(self, state: int) -> bool:
        """Whether the output is complete there and nothing can follow."""
        return bool(self.accepting[state]) and not self.width[state]

    def is_crossed(self, state: int, suffix: bytes) -> bool:
        """Whether a token that begins with `suffix` may go on from the state behind it."""
        key = state, suffix
        found = self._crossings.get(key)
        if found is None:
            found = self.tokens.is_continued(suffix, lambda rest: self._taken(state, rest))
            if len(self._crossings) >= _CROSSINGS:
                self._crossings = {}
            self._crossings[key] = found
        return found

    def _taken(self, state: int, data: bytes) -> int:
        """How many bytes of `data` are allowed in a state."""
        following, classes, columns = self._next, self._classes, self._columns
        for count, byte in enumerate(data):
            state = following[state * columns + classes[byte]]
            if state < 0:
                return count
        return len(data)

    def _mask(self, state: int) -> Mask:
        tokens, trie, columns = self.tokens, self.tokens.trie, self._columns
        reached = np.zeros(len(trie.byte) + 1, np.bool_)
        nodes, states = np.zeros(1, np.intp), np.full(1, state, np.intp)
        while len(nodes):
            counts = trie.count.take(nodes)
            ends = counts.cumsum()
            children = np.repeat(trie.first.take(nodes) - ends + counts, counts) + np.arange(ends[-1])
            cells = np.repeat(states * columns, counts) + self._class_of.take(trie.byte.take(children))
            following = self._table.take(cells).astype(np.intp)
            alive = following >= 0
            nodes, states = children[alive], following[alive]
            reached[nodes] = True
        allowed = reached.take(trie.node)
        if self.accepting[state]:
            allowed[list(tokens.eos_ids)] = True
        if not allowed.any():
            raise InvalidRequest(f"{self.kind}: no token can come next", param=self.kind)
        return packed(allowed)


class FsmGrammar:
    """See `grammar.Grammar`."""

    def __init__(
        self, tokens: Tokens, automaton: Automaton, kind: str = "regex", masks: Masks | None = None
    ) -> None:
        """At the beginning; `copy` makes others of the same automaton.

        Args:
            tokens: the vocabulary.
            automaton: what the output has to be.
            kind: the constraint's, for errors.
            masks: where masks are kept; without it, they are kept for this automaton alone.
        """
        self._fsm = Fsm(tokens, automaton, kind, masks or Masks())
        self._states = [0]  # after each token
        self._ends = 0  # end tokens that came

    def __repr__(self) -> str:
        return f"<FsmGrammar {self._fsm.kind} {self._fsm} accepting={self.is_accepting} over={self.is_over}>"

    def mask_into(self, row: Mask) -> None:
        """See `Grammar`."""
        fsm = self._fsm
        row[:] = fsm.tokens.end_mask if self._ends else fsm.mask(self._states[-1])

    def advance(self, token: int) -> None:
        """See `Grammar`."""
        fsm, state = self._fsm, self._states[-1]
        if token in fsm.tokens.eos_ids:
            if fsm.accepting[state]:
                self._ends += 1
                return
        elif not self._ends and 0 <= token < fsm.tokens.size:
            data = fsm.tokens.raw[token]
            following = fsm.step(state, data) if data else DEAD
            if following != DEAD:
                self._states.append(following)
                return
        raise InvalidRequest(f"{fsm.kind}: token {token} is not allowed here", param=fsm.kind)

    def rollback(self, count: int) -> None:
        """See `Grammar`."""
        ends = min(count, self._ends)
        left = len(self._states) - (count - ends)
        if left < 1:
            raise InvalidRequest(
                f"{self._fsm.kind}: {count} tokens cannot be taken back", param=self._fsm.kind
            )
        self._ends -= ends
        del self._states[left:]

    def copy(self) -> FsmGrammar:
        """See `Grammar`."""
        other = object.__new__(FsmGrammar)
        other._fsm, other._states, other._ends = self._fsm, self._states.copy(), self._ends
        return other

    def matches(self, text: str) -> bool:
        """See `Grammar`; false as well for a text that the vocabulary cannot write."""
        return self._fsm.matches(text)

    def forced_text(self) -> str:
        """See `Grammar`."""
        return self.forced().data.decode("utf-8", "ignore")

    def forced(self) -> Forced:
        """See `Grammar`."""
        if self._ends:
            return Forced(b"", over=True)
        data, state = self._fsm.edges.follow(self._states[-1])
        return Forced(data, self._fsm.ends(state))

    def crossings(self, head: bytes, forced: bytes) -> list[int]:
        """See `Grammar`; none too many."""
        fsm, data = self._fsm, head + forced
        state = DEAD if self._ends else fsm.step(self._states[-1], forced)
        if state == DEAD or not fsm.width[state]:
            return []
        return [at for at in fsm.tokens.beginnings(data) if fsm.is_crossed(state, data[at:])]

    @property
    def is_accepting(self) -> bool:
        """See `Grammar`."""
        return bool(self._fsm.accepting[self._states[-1]])

    @property
    def is_over(self) -> bool:
        """See `Grammar`."""
        return self._ends > 0 or self._fsm.ends(self._states[-1])

    @property
    def weight(self) -> int:
        """See `Grammar`."""
        return self._fsm.weight


def _writable(automaton: Automaton, tokens: Tokens) -> Automaton:
    """Without bytes that no token has, and without states that lead nowhere then; the same where it has no such bytes."""
    known = np.zeros(256, np.bool_)
    known[tokens.trie.byte[1:]] = True
    lost = np.unique(automaton.classes[~known])
    if not (automaton.table[:, lost] != DEAD).any():
        return automaton
    wholly = np.setdiff1d(lost, automaton.classes[known])
    table = np.concatenate([automaton.table, np.full((len(automaton.table), 1), DEAD, np.int32)], axis=1)
    table[:, wholly] = DEAD
    unused = wholly[0] if len(wholly) else table.shape[1] - 1
    classes = np.where(known, automaton.classes, unused).astype(np.uint8)
    live = _live(table, automaton.accepting)
    return Automaton(classes, np.where(live[table] & (table != DEAD), table, DEAD), automaton.accepting)


def _live(
    table: np.ndarray[Any, np.dtype[np.int32]], accepting: np.ndarray[Any, np.dtype[np.bool_]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The states from which an accepting one can be reached: a walk backwards over the transitions."""
    sources, columns = np.nonzero(table != DEAD)
    targets = table[sources, columns]
    order = np.argsort(targets, kind="stable")
    sources = sources[order]
    first = np.searchsorted(targets[order], np.arange(len(table) + 1))
    live = accepting.copy()
    front = np.flatnonzero(live)
    while len(front):
        counts = first[front + 1] - first[front]
        steps = np.repeat(first[front] - counts.cumsum() + counts, counts) + np.arange(counts.sum())
        front = np.unique(sources[steps])
        front = front[~live[front]]
        live[front] = True
    return live
