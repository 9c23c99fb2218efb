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
from sgl_actors.lang.constraints.forced import Forecast, Outlook
from sgl_actors.lang.constraints.grammar import Grammar, mask_words

COMPILED, COMPILED_BYTES = 256, 256 << 20
"""Compiled constraints that are kept, and their weight in all."""
TRIES = 16
"""How often a token is chosen anew because it could not stand beside forced text as the tokenizer writes it."""


@dataclass(frozen=True)
class Next:
    """What may come next in a constrained sequence.

    Attributes:
        forbidden: tokens that may not.
        beside: the next token stands beside forced text.
        written: what comes, without a choice; `forbidden` is of no interest then.
    """

    forbidden: Forbidden | None = None
    written: Written | None = None
    beside: bool = False


class Grammars:
    """See the module. `fill` and `settle` are called by the thread that runs the steps, `prepare` by any."""

    def __init__(self, vocabulary: int) -> None:
        """Masks are for `vocabulary` token ids."""
        self._engines: Engines | None = None
        self._forecast: Forecast
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
        self._forecast = Forecast(engines.tokens)
        self._engines = engines

    def hold(self, sequence: HeldSequence) -> None:
        """Keep the compiled constraint of a sequence that begins for as long as that is there: its first sample may come many steps later."""
        constraint = sequence.sampling.constraint
        if constraint is not None:
            with self._lock:
                sequence.compiled = self._compiled.get(constraint)

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

    def settle(self, sequence: HeldSequence, token: int, allowed: Next, tries: int) -> Written | Next:
        """What is written now that `token` was sampled of what was `allowed`, after `tries` others.

        Returns:
            The tokens, which are `sequence.written` from now on; or what is allowed in another try, where the tokenizer would not have written `token` there.

        Raises:
            InvalidRequest: the grammar cannot go on.
        """
        settled = self._settle(sequence, token, allowed, tries)
        if isinstance(settled, Written):
            sequence.written = settled
            return settled
        return Next(settled, beside=allowed.beside)

    def _settle(self, sequence: HeldSequence, token: int, allowed: Next, tries: int) -> Written | Forbidden:
        """Tokens, or what is forbidden now."""
        grammar, forbidden = sequence.grammar, allowed.forbidden
        assert grammar is not None
        assert forbidden is not None
        assert self._engines is not None
        grammar.advance(token)
        tokens, recent = self._engines.tokens, sequence.output_tail()
        if token in sequence.sampling.end_ids or not tokens.raw[token]:  # no text: nothing can join it
            return Written((token,))
        outlook = self._forecast.look_ahead(grammar, recent, tokens.raw[token])
        certain = outlook.certain if outlook is not None else ()
        firsts = None if outlook is None or certain else outlook.firsts
        certain = certain or (token,)
        other: Forbidden | None = None
        if outlook is not None and firsts is not None and token not in firsts:
            other = self._only(outlook, forbidden)
        elif (
            allowed.beside
            and not self._forecast.fits(recent, certain[0])
            and self._forecast.avoidable(recent[-1], certain[0], ~forbidden)
        ):
            other = forbidden.copy()
            other[self._forecast.unfit(recent, token, ~forbidden)] = True
        if other is not None and tries < TRIES and not other.all():
            grammar.rollback(1)
            return other
        if certain[0] != token:
            grammar.rollback(1)
            grammar.advance(certain[0])
            rest = tokens.raw[token][len(tokens.raw[certain[0]]) :]
            if not grammar.forced().data.startswith(rest):  # nothing but `token` would say what follows
                certain = certain[:1]
        self._advance(grammar, certain[1:])
        return Written(certain, 0 if outlook is None else outlook.held_back)

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
        recent = sequence.output_tail()
        outlook = self._forecast.look_ahead(grammar, recent)
        if outlook is not None and outlook.certain:
            self._advance(grammar, outlook.certain)
            sequence.written = Written(outlook.certain, outlook.held_back, chosen=False)
            return Next(written=sequence.written)
        grammar.mask_into(self._row)
        bits = np.unpackbits(self._row.view(np.uint8), count=self._vocabulary, bitorder="little")
        forbidden: Forbidden = bits == 0
        if outlook is not None and outlook.firsts is not None:
            only = self._only(outlook, forbidden)
            forbidden = forbidden if only.all() else only
        if sequence.sample_row().bans_ends:
            later = forbidden.copy()
            later[list(sequence.sampling.end_ids)] = True
            forbidden = forbidden if later.all() else later
        beside = bool(recent) and (outlook is not None or self._forecast.touches(grammar, recent[-1]))
        return Next(forbidden, beside=beside)

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
        kept = [*longer, *(outlook.firsts or ())]
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
            compiled = self._compiled.get(constraint, sequence.compiled)
            if compiled is None:
                raise NotReady("the constraint is not compiled: the grammar actor was not to be reached")
            if constraint in self._compiled:
                self._compiled.move_to_end(constraint)
            grammar = compiled.copy()
        sequence.compiled = None
        self._advance(grammar, sequence.token_ids[sequence.prompt_length :])
        return grammar
