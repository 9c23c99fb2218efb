"""Regular expressions and choices as minimal deterministic automata over bytes (`Automaton`).

An expression becomes a deterministic automaton over characters (`deterministic`), that is made minimal (`minimal`), and in the end it becomes one over the
bytes of UTF-8 (`utf8_automaton`). Every step has its limit, so that time and memory are bounded whatever the expression is: some two seconds, and mostly
far less.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence as Series
from typing import Any

import numpy as np

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints import regex_syntax
from sgl_actors.lang.constraints.automaton import DEAD, Automaton
from sgl_actors.lang.constraints.constraint import CHOICE, REGEX
from sgl_actors.lang.constraints.deterministic import deterministic
from sgl_actors.lang.constraints.minimal import acyclic, minimal
from sgl_actors.lang.constraints.utf8_automaton import byte_automaton, checked


def compile_regex(source: str) -> Automaton:
    """The minimal automaton of an expression (`regex_syntax`), which a whole text has to match.

    Raises:
        InvalidRequest: the expression is wrong (says where), not regular, or matches nothing.
        Declined: it has rare syntax, or reaches a limit (`regex_syntax.SIZE`, `deterministic.WORK`, `utf8_automaton.STATES` or ``CELLS``).

    Example:
        >>> compile_regex("caf(é|e)s?").matches("cafés")
        True
    """
    kinds, rows, accepting = deterministic(regex_syntax.parse(source))
    if not rows:
        raise InvalidRequest(f"{REGEX}: there is no text that it allows", param=REGEX)
    table, ends = minimal(rows, accepting)
    columns = _distinct_columns(table)
    runs = [(low, high, columns[1][kind]) for low, high, kind in kinds]
    return byte_automaton(table[:, columns[0]], ends, [run for run in runs if run[2] >= 0])


def compile_choices(texts: Series[str]) -> Automaton:
    """The minimal automaton of these texts alone.

    Raises:
        InvalidRequest: there is no text, or one that is no valid Unicode.
        Declined: it is larger than `utf8_automaton.STATES` or ``CELLS``.

    Example:
        >>> compile_choices(["red", "green", "blue"]).matches("green")
        True
    """
    if not texts:
        raise InvalidRequest(f"{CHOICE}: there is nothing to choose from", param=CHOICE)
    try:
        words = sorted({text.encode() for text in texts})
    except UnicodeEncodeError as error:
        shown = json.dumps(str(error.object)[:40])
        raise InvalidRequest(f"{CHOICE}: {shown} is no valid Unicode", param=CHOICE) from None
    edges, accepting = acyclic(words)
    columns: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for state, row in enumerate(edges):
        for byte, target in row.items():
            columns[byte].append((state, target))
    classes = np.zeros(256, np.uint8)
    numbers: dict[tuple[tuple[int, int], ...], int] = {}
    for byte, column in columns.items():
        classes[byte] = numbers.setdefault(tuple(column), len(numbers) + 1)
    checked(len(edges), len(numbers) + 1)
    table = np.full((len(edges), len(numbers) + 1), DEAD, np.int32)
    for edges_of, number in numbers.items():
        for state, target in edges_of:
            table[state, number] = target
    return Automaton(classes, table, np.array(accepting))


def _distinct_columns(table: np.ndarray[Any, np.dtype[np.int32]]) -> tuple[list[int], list[int]]:
    """A kind of characters for each distinct column that leads anywhere, and for each kind the place of its column there, or -1."""
    known: dict[bytes, int] = {}
    first: list[int] = []
    places: list[int] = []
    for kind, column in enumerate(np.ascontiguousarray(table.T)):
        if (column == DEAD).all():
            places.append(-1)
            continue
        place = known.setdefault(column.tobytes(), len(known))
        if place == len(first):
            first.append(kind)
        places.append(place)
    return first, places
