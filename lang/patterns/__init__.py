"""Patterns of programs: plain functions over `s.fork`, each of which takes the state `s` first, leaves it as it is, and cancels what it needs no more."""

from __future__ import annotations

from sgl_actors.lang.patterns.judging import Judgement, judge
from sgl_actors.lang.patterns.mapping import map_, reduce_
from sgl_actors.lang.patterns.racing import first_valid, race
from sgl_actors.lang.patterns.result import Candidate, NoValidResult, Result
from sgl_actors.lang.patterns.retrying import retry_until
from sgl_actors.lang.patterns.sampling import best_of, normalise, vote
from sgl_actors.lang.patterns.search import beam, tree_search

__all__ = [
    "Candidate", "Judgement", "NoValidResult", "Result", "beam", "best_of", "first_valid", "judge", "map_", "normalise", "race",
    "reduce_", "retry_until", "tree_search", "vote",
]  # fmt: skip
