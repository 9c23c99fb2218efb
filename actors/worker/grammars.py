"""The grammars of the batch's constrained sequences: what may come next, and what has to.

A mask depends on the tokens before the one to be sampled alone, and they are known when the forward pass begins: a thread fills the masks while it runs. A
sequence's grammar is made at its first sample, by replaying the output it has: so a retracted, re-submitted or restarted one goes on where it was.
After a token was sampled, `settle` says which tokens stand for it and follow it without a choice (`forced`): they are appended at once, or one by one without jump-forward.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np

from sgl_actors.actors.worker.batch import HeldSequence, Written
from sgl_actors.actors.worker.sample_row import Forbidden
from sgl_actors.errors import NotReady, SglActorsError
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.constraints.engines import Engines
from sgl_actors.lang.constraints.forced import Outlook, look_ahead
from sgl_actors.lang.constraints.grammar import Grammar, mask_words

COMPILED, COMPILED_BYTES = 256, 256 << 20
"""Compiled constraints that are kept, and their weight in all."""
TRIES = 4
"""How often a token is chosen anew because it could not stand before the text that it forces."""


@dataclass(frozen=True)
class Next:
    """What may come next in a constrained sequence.

    Attributes:
        forbidden: tokens that may not.
        written: what comes, without a choice; `forbidden` is of no interest then.
    """

    forbidden: Forbidden | None = None
    written: Written | None = None


class Grammars:
    """See the module. `fill` and `settle` are called by the thread that runs the steps, `prepare` by any."""

    def __init__(self, vocabulary: int) -> None:
        """Masks are for `vocabulary` token ids."""
        self._engines: Engines | None = None
        self._vocabulary = vocabulary
        self._row = np.zeros(0, dtype=np.int32)
        self._compiled: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def __repr__(self) -> str:
        return f"<Grammars {len(self._compiled)} compiled, ready={self.ready}>"

    @property
    def ready(self) -> bool:
        """Whether the vocabulary is known."""
        return self._engines is not None

    def set_up(self, engines: Engines) -> None:
        """Take up the vocabulary."""
        self._row = np.zeros(mask_words(engines.tokens.size), dtype=np.int32)
        self._engines = engines

    def knows(self, constraint: Constraint) -> bool:
        """Whether a sequence under it can begin at once."""
        return constraint in self._compiled

    def prepare(self, constraint: Constraint, automaton: bytes) -> None:
        """Make its grammar, so that sequences can begin. Raises `InvalidRequest` if the source is none."""
        if self._engines is None:
            raise NotReady("the vocabulary is not known yet, so outputs cannot be constrained")
        grammar = self._engines.load(constraint, automaton)
        grammar.copy().mask_into(np.zeros_like(self._row))
        compiled = self._compiled
        with self._lock:
            compiled[constraint] = grammar
            compiled.move_to_end(constraint)
            weight = sum(one.weight for one in compiled.values())
            while len(compiled) > 1 and (len(compiled) > COMPILED or weight > COMPILED_BYTES):
                weight -= compiled.popitem(last=False)[1].weight

    def fill(self, sequences: Sequence[HeldSequence]) -> Future[dict[int, Next | SglActorsError]]:
        """Begin to work out what may come next in those of them that are constrained; by sequence number, or why it cannot be said."""
        constrained = [sequence for sequence in sequences if sequence.sampling.constraint is not None]
        if not constrained:
            nothing: Future[dict[int, Next | SglActorsError]] = Future()
            nothing.set_result({})
            return nothing
        return self._thread.submit(self._fill, constrained)

    def settle(
        self, sequence: HeldSequence, token: int, forbidden: Forbidden, tries: int
    ) -> Written | Forbidden:
        """What is written now that `token` was sampled where `forbidden` was not allowed, after `tries` others.

        Returns:
            The tokens, which are `sequence.written` from now on; or what is forbidden in another try, where the canonical encoding of what follows
            cannot begin with `token`.

        Raises:
            InvalidRequest: the grammar cannot go on.
        """
        settled = self._settle(sequence, token, forbidden, tries)
        if isinstance(settled, Written):
            sequence.written = settled
        return settled

    def _settle(
        self, sequence: HeldSequence, token: int, forbidden: Forbidden, tries: int
    ) -> Written | Forbidden:
        grammar = sequence.grammar
        assert grammar is not None
        assert self._engines is not None
        grammar.advance(token)
        tokens = self._engines.tokens
        if token in tokens.eos_ids or token in sequence.sampling.end_ids:
            return Written((token,))
        outlook = look_ahead(tokens, grammar, sequence.output_tail(), tokens.raw[token])
        if outlook is None or (not outlook.certain and (token in outlook.firsts or not outlook.firsts)):
            return Written((token,))
        if outlook.certain:
            if outlook.certain[0] == token:
                self._advance(grammar, outlook.certain[1:])
            else:
                grammar.rollback(1)
                self._advance(grammar, outlook.certain)
            return Written(outlook.certain, outlook.held_back)
        other = self._only(outlook, forbidden) if tries < TRIES else forbidden
        if tries >= TRIES or other.all():
            return Written((token,))
        grammar.rollback(1)
        return other

    def _fill(self, sequences: list[HeldSequence]) -> dict[int, Next | SglActorsError]:
        found: dict[int, Next | SglActorsError] = {}
        for sequence in sequences:
            try:
                found[sequence.seq] = self._next(sequence)
            except SglActorsError as error:
                found[sequence.seq] = error
        return found

    def _next(self, sequence: HeldSequence) -> Next:
        """What is left of the forced tokens, or what may come: by the grammar and, where that leaves anything, `min_tokens`."""
        if sequence.grammar is None:
            sequence.grammar = self._begin(sequence)
        if sequence.written is not None:
            return Next(written=sequence.written)
        grammar = sequence.grammar
        assert self._engines is not None
        outlook = look_ahead(self._engines.tokens, grammar, sequence.output_tail())
        if outlook is not None and outlook.certain:
            self._advance(grammar, outlook.certain)
            sequence.written = Written(outlook.certain, outlook.held_back, chosen=False)
            return Next(written=sequence.written)
        grammar.mask_into(self._row)
        bits = np.unpackbits(self._row.view(np.uint8), count=self._vocabulary, bitorder="little")
        forbidden: Forbidden = bits == 0
        if outlook is not None and outlook.firsts:
            only = self._only(outlook, forbidden)
            forbidden = forbidden if only.all() else only
        if sequence.sample_row().bans_ends:
            later = forbidden.copy()
            later[list(sequence.sampling.end_ids)] = True
            forbidden = forbidden if later.all() else later
        return Next(forbidden)

    def _only(self, outlook: Outlook, forbidden: Forbidden) -> Forbidden:
        """Of what is not `forbidden`, leave what the text of `outlook` can begin with."""
        assert self._engines is not None
        tokens = self._engines.tokens
        other = np.ones_like(forbidden)
        longer = [
            token
            for token in tokens.starting_with(outlook.text).tolist()
            if tokens.raw[token] != outlook.text
        ]
        kept = [*longer, *outlook.firsts]
        other[kept] = forbidden[kept]
        return other

    @staticmethod
    def _advance(grammar: Grammar, tokens: Sequence[int]) -> None:
        for token in tokens:
            grammar.advance(token)

    def _begin(self, sequence: HeldSequence) -> Grammar:
        constraint = sequence.sampling.constraint
        assert constraint is not None
        with self._lock:
            compiled = self._compiled.get(constraint)
            if compiled is None:
                raise NotReady("the constraint is not compiled: the grammar actor was not to be reached")
            self._compiled.move_to_end(constraint)
            grammar = compiled.copy()
        self._advance(grammar, sequence.token_ids[sequence.prompt_length :])
        return grammar
