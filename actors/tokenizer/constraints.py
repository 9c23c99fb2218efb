"""What a request asks of its output, checked before the request is admitted: the constraint is compiled as the worker will do it, stop patterns are too.

That takes from a fraction of a millisecond to, for sources made to be slow, about a second, so it is to be done in a thread. Nothing of what it takes is
loaded before the first constraint.
"""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

from sgl_actors.actors.tokenizer.messages import SamplingOptions, VocabularyInfo
from sgl_actors.actors.tokenizer.stop_patterns import compile_pattern
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import Constraint

if TYPE_CHECKING:
    from sgl_actors.lang.constraints.grammar import Compiler

REMEMBERED = 1024
"""Constraints whose verdict is kept."""


class Constraints:
    """Checks, for one vocabulary. Any number of threads may use it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._verdict = lru_cache(REMEMBERED)(self._compile)
        self._compiler: Compiler | None = None
        self._setting_up = Lock()

    def __repr__(self) -> str:
        return f"<Constraints {self._verdict.cache_info()}>"

    def describe(self, eos_ids: tuple[int, ...]) -> VocabularyInfo:
        """The vocabulary as the worker needs it; `eos_ids` where the checkpoint's tokenizer names none."""
        vocabulary = self._vocabulary
        return VocabularyInfo(vocabulary.tokenizer.to_str(), len(vocabulary), vocabulary.eos_ids or eos_ids)

    def check(self, options: SamplingOptions, eos_ids: tuple[int, ...]) -> None:
        """Check the constraint and the stop patterns.

        Raises:
            InvalidRequest: naming the field and what is wrong with it.
        """
        for source in options.stop_regex:
            compile_pattern(source)
        if options.constraint is None:
            return
        problem = self._verdict(options.constraint, eos_ids)
        if problem is not None:
            raise InvalidRequest(problem.message, param=problem.param)

    def _compile(self, constraint: Constraint, eos_ids: tuple[int, ...]) -> InvalidRequest | None:
        """What is wrong with it. The first mask belongs to that: some limits show only then, and so does what no output satisfies."""
        import numpy as np

        from sgl_actors.lang.constraints.grammar import mask_words

        row = np.zeros(mask_words(len(self._vocabulary)), dtype=np.int32)
        try:
            self._set_up(eos_ids).compile(constraint).mask_into(row)
        except InvalidRequest as error:
            return error
        return None

    def _set_up(self, eos_ids: tuple[int, ...]) -> Compiler:
        with self._setting_up:
            if self._compiler is None:
                from sgl_actors.lang.constraints.llguidance_grammar import LlguidanceCompiler

                info = self.describe(eos_ids)
                self._compiler = LlguidanceCompiler(info.tokenizer, info.eos_ids, info.size)
            return self._compiler
