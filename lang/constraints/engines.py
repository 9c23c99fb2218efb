"""Which engine decodes under a constraint: the compressed FSM where it can, llguidance for the rest.

A constraint is compiled where that may take long and fail (`Engines.compile`), and loaded where outputs are written (`Engines.load`). What travels between is
the automaton; without one, llguidance reads the source again, which takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints import choice
from sgl_actors.lang.constraints.automaton import Automaton
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, KINDS, LARK, REGEX, Constraint
from sgl_actors.lang.constraints.fsm_grammar import FsmGrammar, Masks
from sgl_actors.lang.constraints.grammar import Declined, Grammar, mask_words
from sgl_actors.lang.constraints.tokens import Tokens

if TYPE_CHECKING:
    from sgl_actors.lang.constraints.llguidance_grammar import LlguidanceCompiler

AUTO: Final = "auto"
"""The compressed FSM where it takes the constraint, else llguidance."""
FSM: Final = "fsm"
LLGUIDANCE: Final = "llguidance"
ENGINES: Final = (AUTO, FSM, LLGUIDANCE)


class Compiled(NamedTuple):
    """A constraint that can be loaded.

    Attributes:
        engine: `FSM` or `LLGUIDANCE`.
        automaton: the FSM's, packed; b"" for llguidance.
        why: why it is not the FSM; "" if it is.
    """

    engine: str
    automaton: bytes
    why: str


class Engines:
    """Both engines for one vocabulary, each set up when it is first needed. Any number of threads may use it.

    Attributes:
        engine: which one is to be used, one of `ENGINES`.
        size: token ids of a mask.
    """

    def __init__(self, tokenizer: str, eos_ids: Sequence[int], size: int, engine: str = AUTO) -> None:
        """Nothing is set up yet.

        Args:
            tokenizer: the tokenizers library's JSON.
            eos_ids: end tokens.
            size: ids of the model; at least those of the tokenizer.
            engine: one of `ENGINES`.

        Raises:
            InvalidRequest: there is no such engine.
        """
        if engine not in ENGINES:
            raise InvalidRequest(f"engine: {engine[:32]!r} is none of {', '.join(ENGINES)}", param="engine")
        self.engine = engine
        self.size = size
        self._vocabulary = tokenizer, tuple(eos_ids), size
        self._lock = Lock()
        self._tokens: Tokens | None = None
        self._llguidance: LlguidanceCompiler | None = None
        self._masks = Masks()

    def __repr__(self) -> str:
        return f"<Engines {self.engine}, {self.size} tokens, {self._masks}>"

    @property
    def tokens(self) -> Tokens:
        """The vocabulary; raises what `Tokens` does."""
        if (known := self._tokens) is not None:  # not to wait for a set-up of llguidance
            return known
        with self._lock:
            if self._tokens is None:
                self._tokens = Tokens(*self._vocabulary)
            return self._tokens

    def set_up(self) -> None:
        """Set up both now, which takes some 0.5 s; raises what `Tokens` does, and where llguidance does not read this kind of tokenizer."""
        self._set_up_llguidance()

    def compile(self, constraint: Constraint) -> Compiled:
        """Compile it, and work out the first mask: some limits show only then, and so does what no output satisfies.

        Raises:
            InvalidRequest: the source is not what its kind says, nothing satisfies it, or the engine does not support what it asks for. `param` is the
                constraint's kind.
        """
        if constraint.kind == JSON_SCHEMA:
            from sgl_actors.lang.constraints.schema_vetting import vet_schema

            vet_schema(constraint.source)
        if constraint.kind == LARK:
            from sgl_actors.lang.constraints.lark_schemas import vet_lark

            vet_lark(constraint.source)
        automaton, why = self._automaton(constraint)
        compiled = Compiled(
            LLGUIDANCE if automaton is None else FSM, b"" if automaton is None else automaton.pack(), why
        )
        grammar = self.load(constraint, compiled.automaton)
        grammar.mask_into(np.zeros(mask_words(self.size), np.int32))
        return compiled

    def load(self, constraint: Constraint, automaton: bytes) -> Grammar:
        """A grammar at its beginning; raises what `compile` does.

        Args:
            constraint: it.
            automaton: what `compile` made of it.
        """
        if automaton:
            return FsmGrammar(self.tokens, Automaton.unpack(automaton), constraint.kind, self._masks)
        return self._set_up_llguidance().compile(constraint)

    def _automaton(self, constraint: Constraint) -> tuple[Automaton | None, str]:
        """The FSM's automaton, or why there is none."""
        if self.engine == LLGUIDANCE:
            return None, f"engine: {LLGUIDANCE} is asked for"
        try:
            return automaton_of(constraint), ""
        except Declined as reason:
            if self.engine == FSM:
                raise InvalidRequest(
                    f"{constraint.kind}: the compressed FSM does not take it ({reason}); engine {AUTO!r} does",
                    param=constraint.kind,
                ) from None
            return None, str(reason)

    def _set_up_llguidance(self) -> LlguidanceCompiler:
        tokens = self.tokens
        with self._lock:
            if self._llguidance is None:
                from sgl_actors.lang.constraints.llguidance_grammar import LlguidanceCompiler

                self._llguidance = LlguidanceCompiler(*self._vocabulary, tokens)
            return self._llguidance


def automaton_of(constraint: Constraint) -> Automaton:
    """The constraint as an automaton.

    Raises:
        Declined: it is not regular, too large, or asks for what the FSM does not know.
        InvalidRequest: it is wrong in itself.
    """
    from sgl_actors.lang.constraints.regex_automaton import compile_choices, compile_regex

    kind, source = constraint.kind, constraint.source
    if kind == REGEX:
        return compile_regex(source)
    if kind == CHOICE:
        return compile_choices(choice.texts(source))
    if kind == LARK:
        raise Declined("lark: a context-free grammar")
    if kind != JSON_SCHEMA:
        raise InvalidRequest(f"constraint: {kind[:32]!r} is none of {', '.join(KINDS)}", param="constraint")
    from sgl_actors.lang.constraints.schema_regex import schema_regex

    try:
        return compile_regex(schema_regex(source))
    except InvalidRequest as error:  # the asker never saw this expression, and llguidance has better words
        raise Declined(error.message) from None
