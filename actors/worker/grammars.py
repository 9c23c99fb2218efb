"""The grammars of the batch's constrained sequences, and the thread that fills their masks while the forward pass runs.

A mask depends on the tokens before the one to be sampled alone, and they are known when the pass begins. A sequence's grammar is made at its first sample, by
replaying the output it has: so a retracted, re-submitted or restarted one goes on where it was. Compiled constraints are kept, as
constraints are asked for again and again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sgl_actors.actors.worker.batch import HeldSequence
from sgl_actors.actors.worker.sample_row import Forbidden
from sgl_actors.errors import NotReady, SglActorsError
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.constraints.grammar import Compiler, Grammar, mask_words

COMPILED = 256
"""Compiled constraints that are kept."""


class Grammars:
    """See the module. `fill` is called by the thread that runs the steps, which also moves the grammars between two calls.

    Attributes:
        compiler: None until the vocabulary is known.
    """

    def __init__(self, vocabulary: int) -> None:
        """Masks are for `vocabulary` token ids."""
        self.compiler: Compiler | None = None
        self._vocabulary = vocabulary
        self._row = np.zeros(0, dtype=np.int32)
        self._compiled: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def __repr__(self) -> str:
        return f"<Grammars {len(self._compiled)} compiled, ready={self.compiler is not None}>"

    def fill(self, sequences: Sequence[HeldSequence]) -> Future[dict[int, Forbidden | SglActorsError]]:
        """Begin to work out what must not come next in those of them that are constrained; by sequence number, or why it cannot be said."""
        constrained = [sequence for sequence in sequences if sequence.sampling.constraint is not None]
        if not constrained:
            nothing: Future[dict[int, Forbidden | SglActorsError]] = Future()
            nothing.set_result({})
            return nothing
        return self._thread.submit(self._fill, constrained)

    def _fill(self, sequences: list[HeldSequence]) -> dict[int, Forbidden | SglActorsError]:
        found: dict[int, Forbidden | SglActorsError] = {}
        for sequence in sequences:
            try:
                found[sequence.seq] = self._forbidden(sequence)
            except SglActorsError as error:
                found[sequence.seq] = error
        return found

    def _forbidden(self, sequence: HeldSequence) -> Forbidden:
        """What the grammar and, where that leaves anything, `min_tokens` forbid."""
        constraint = sequence.sampling.constraint
        assert constraint is not None
        if sequence.grammar is None:
            sequence.grammar = self._begin(constraint, sequence.token_ids[sequence.prompt_length :])
        sequence.grammar.mask_into(self._row)
        bits = np.unpackbits(self._row.view(np.uint8), count=self._vocabulary, bitorder="little")
        forbidden: Forbidden = bits == 0
        if sequence.sample_row().bans_ends:
            later = forbidden.copy()
            later[list(sequence.sampling.end_ids)] = True
            forbidden = forbidden if later.all() else later
        return forbidden

    def _begin(self, constraint: Constraint, output: list[int]) -> Grammar:
        compiled = self._compiled
        if constraint not in compiled:
            if self.compiler is None:
                raise NotReady("the vocabulary is not known yet, so outputs cannot be constrained")
            self._row = np.zeros(mask_words(self.compiler.size), dtype=np.int32)
            compiled[constraint] = self.compiler.compile(constraint)
            if len(compiled) > COMPILED:
                compiled.popitem(last=False)
        compiled.move_to_end(constraint)
        grammar = compiled[constraint].copy()
        for token in output:
            grammar.advance(token)
        return grammar
