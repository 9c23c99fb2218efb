"""Six constraints whose compressed automata are known from elsewhere, with a text for each; and how long ours take to build."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from benchmarks.constraint.tasks import CHARACTER
from benchmarks.harness import median
from sgl_actors.lang.constraints.constraint import CHOICE, REGEX, Constraint
from sgl_actors.lang.constraints.regex_automaton import compile_choices, compile_regex

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_STRING = r'"([^"\\\x00-\x1f\x7f]|\\["\\/bfnrt]){0,20}"'
_SCHEMA = (
    rf'\{{"name": {_STRING}, "kind": ("city"|"village"|"hamlet"), '
    rf'"tags": \[({_STRING}(, {_STRING}){{0,3}})?\], "position": \{{"latitude": {_NUMBER}, "longitude": {_NUMBER}\}}, '
    r'"population": (0|[1-9][0-9]{0,9}), "capital": (true|false)\}'
)


def _tree(depth: int) -> str:
    children = rf"\[({_tree(depth - 1)}(, {_tree(depth - 1)})*)?\]" if depth > 1 else r"\[\]"
    return rf'\{{"value": [0-9]{{1,3}}, "children": {children}\}}'


@dataclass(frozen=True)
class Known:
    """A constraint, and a text that it allows."""

    constraint: Constraint
    sample: str

    def build_time(self, rounds: int) -> float:
        """Median seconds that its automaton takes to build."""
        choices = json.loads(self.constraint.source) if self.constraint.kind == CHOICE else []
        took: list[float] = []
        for _ in range(rounds):
            start = time.perf_counter()
            compile_choices(choices) if choices else compile_regex(self.constraint.source)
            took.append(time.perf_counter() - start)
        return median(took)


CHOICES = (
    "the first of the five answers",
    "second thoughts are the best",
    "nobody will ever know why",
    "yes",
    "no",
)
SIX = {
    "date": Known(
        Constraint(REGEX, "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"), "2024-05-17"
    ),
    "ipv4": Known(Constraint(REGEX, rf"{_OCTET}(\.{_OCTET}){{3}}"), "192.168.1.100"),
    "choice": Known(Constraint(CHOICE, json.dumps(CHOICES)), CHOICES[1]),
    "character": Known(
        Constraint(REGEX, CHARACTER),
        """{
    "name": "Harry Potter",
    "house": "Gryffindor",
    "blood status": "Pure-blood",
    "occupation": "student",
    "wand": {
        "wood": "Holly",
        "core": "Phoenix feather",
        "length": 11.0
    },
    "alive": "Alive",
    "patronus": "Stag",
    "bogart": "Dementor"
}""",
    ),
    "schema": Known(
        Constraint(REGEX, _SCHEMA),
        '{"name": "Zürich", "kind": "city", "tags": ["old", "lake 🌊"], "position": {"latitude": 47.37, "longitude": 8.54}, '
        '"population": 421878, "capital": false}',
    ),
    "recursive": Known(
        Constraint(REGEX, _tree(3)),
        '{"value": 1, "children": [{"value": 20, "children": []}, '
        '{"value": 3, "children": [{"value": 400, "children": []}]}]}',
    ),
}
"""By name, in the order of the reference."""


def build_times(rounds: int = 9) -> dict[str, float]:
    """Median seconds to build each automaton, the tables of Unicode being there."""
    compile_regex(r"\w")
    return {name: known.build_time(rounds) for name, known in SIX.items()}
