"""Decodes constrained cases in this process, by the worker's own runner, and says of every token whether it was chosen or forced.

`Decoder.run` is what the node does, with jumps or without; `Decoder.plain` masks token by token with llguidance, without anything being forced or held back. Both
fill a batch of `ROWS` sequences and put the next one in as soon as one ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import msgspec
import numpy as np

from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.actors.worker.batch import HeldSequence, Written
from sgl_actors.actors.worker.grammars import Grammars, Next
from sgl_actors.actors.worker.messages import JUMP, Logprobs, Sampling, SequenceResult, Work
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from sgl_actors.errors import SglActorsError
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.constraints.engines import Engines
from tests.end_to_end.constrained_cases import Case
from tests.worker.harness import Driver, all_logits, make_runner

ROWS = 16
"""Sequences at once."""
POOL = 24_576
"""Tokens of the KV pool: `ROWS` times the longest prompt and output."""


@dataclass
class Output:
    """What one case came to.

    Attributes:
        tokens: ids, the end token included if it came.
        forced: of each, whether the constraint left no choice about it.
        held_back: as `SequenceResult.held_back`, summed up.
        steps: forward passes that brought tokens.
        ended: by an end token, not by length.
        error: why it failed.
    """

    tokens: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    held_back: int = 0
    steps: int = 0
    ended: bool = False
    error: str = ""

    def take(self, result: SequenceResult, ends: Sequence[int], most: int) -> None:
        """Take up a step's result; tokens over `most` or behind an end are dropped, as the scheduler does."""
        self.error = result.error
        if result.token_id < 0:
            return
        self.steps += 1
        self.held_back += result.held_back
        for place, token in enumerate((result.token_id, *result.forced)):
            if self.ended or len(self.tokens) == most:
                return
            self.tokens.append(token)
            self.forced.append(place > 0 or not result.chosen)
            self.ended = token in ends


@dataclass(frozen=True)
class Spot:
    """A place where an output is not canonical.

    Attributes:
        text: there.
        jumped: a forced token takes part in it.
        certain: beside a border between two tokens there that the tokenizer would not write, the constraint left no choice.
    """

    text: str
    jumped: bool
    certain: bool


class PlainMasking(Grammars):
    """Masks and nothing else: what the grammar allows is sampled token by token."""

    def settle(
        self,
        sequence: HeldSequence,
        token: int,
        allowed: Next,
        tries: int,
    ) -> Written | Next:
        """Whatever was sampled stands as it is."""
        assert sequence.grammar is not None
        sequence.grammar.advance(token)
        sequence.written = Written((token,))
        return sequence.written

    def _next(self, sequence: HeldSequence) -> Next:
        if sequence.grammar is None:
            sequence.grammar = self._begin(sequence)
        sequence.grammar.mask_into(self._row)
        bits = np.unpackbits(self._row.view(np.uint8), count=self._vocabulary, bitorder="little")
        return Next(bits == 0)


class Decoder:
    """The default model, its vocabulary and both engines.

    Attributes:
        engines: the choice is automatic.
        bytes_of: of each id; nothing for special tokens.
    """

    def __init__(self, model: CausalLM, vocabulary: Vocabulary) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self._of = vocabulary.tokenizer.to_str(), vocabulary.eos_ids, model.config.vocabulary
        self.engines = Engines(*self._of)
        self.llguidance = Engines(*self._of, engine="llguidance")
        self._compiled: dict[Constraint, tuple[str, bytes]] = {}

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """End tokens."""
        return self.vocabulary.eos_ids

    def engine(self, constraint: Constraint) -> str:
        """The one that takes it. Raises `InvalidRequest` if none does."""
        return self._compile(constraint)[0]

    def run(
        self, cases: Sequence[Case], *, jump: bool, most: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Output]:
        """Decode all cases to at most `most` tokens each, in order of `cases`."""
        grammars = self._set_up(Grammars(self.model.config.vocabulary), self.engines)
        for case in cases:
            grammars.prepare(case.constraint, self._compile(case.constraint)[1])
        sampling = Sampling(
            seed=seed, temperature=temperature, jump_forward=jump, end_ids=tuple(self.eos_ids)
        )
        return self._decode(cases, grammars, sampling, most)

    def plain(self, cases: Sequence[Case], *, most: int) -> list[Output]:
        """The same greedily by masks of llguidance alone."""
        grammars = self._set_up(PlainMasking(self.model.config.vocabulary), self.llguidance)
        for case in cases:
            grammars.prepare(case.constraint, b"")
        sampling = Sampling(seed=0, temperature=0.0, jump_forward=False, end_ids=tuple(self.eos_ids))
        return self._decode(cases, grammars, sampling, most)

    def text(self, output: Output) -> str:
        """Its text, without end tokens."""
        return self.written(output.tokens).decode("utf-8", "replace")

    def written(self, tokens: Sequence[int]) -> bytes:
        """Bytes of ids, without end tokens."""
        return b"".join(self.vocabulary.bytes_of(t for t in tokens if t not in self.eos_ids))

    def gap(self, case: Case, before: Sequence[int], one: int, two: int) -> float:
        """How much the model prefers token `one` to `two` behind `before`, in logits."""
        logits = all_logits(self.model, [*self.vocabulary.encode(case.prompt), *before])[-1]
        return float(logits[one] - logits[two])

    def allowed(self, case: Case, before: Sequence[int], token: int, *, plain: bool) -> bool:
        """Whether `token` may be sampled behind `before`; what is forced may."""
        _, held, found = self._behind(case, before, plain=plain)
        if held.written is not None:
            return held.written.tokens[0] == token
        return found is not None and found.forbidden is not None and not found.forbidden[token]

    def written_for(self, case: Case, before: Sequence[int], token: int) -> int:
        """What stands for `token` when it is sampled behind `before`: itself, or one that joins it with the text it forces; -1 if another is chosen instead."""
        grammars, held, found = self._behind(case, before, plain=False)
        if found is None or found.forbidden is None:
            return -1
        settled = grammars.settle(held, token, found, 0)
        return settled.tokens[0] if isinstance(settled, Written) else -1

    def _behind(
        self, case: Case, before: Sequence[int], *, plain: bool
    ) -> tuple[Grammars, HeldSequence, Next | None]:
        """A sequence with that output, and what may come then; None if nothing can."""
        kind, engines = (PlainMasking, self.llguidance) if plain else (Grammars, self.engines)
        grammars = self._set_up(kind(self.model.config.vocabulary), engines)
        grammars.prepare(case.constraint, b"" if plain else self._compile(case.constraint)[1])
        held = HeldSequence(1, [0, *before], 1, 0, Sampling(seed=0, constraint=case.constraint), Logprobs())
        found = grammars.fill([held]).result()[1]
        return grammars, held, None if isinstance(found, SglActorsError) else found

    def matches(self, constraint: Constraint, text: str) -> bool:
        """Whether the engine that takes the constraint takes the whole text."""
        return self.engines.load(constraint, self._compile(constraint)[1]).matches(text)

    def spots(self, case: Case, output: Output) -> Iterator[Spot]:
        """Where it is not what the tokenizer makes of its text."""
        tokens = [token for token in output.tokens if token not in self.eos_ids]
        while tokens and not _whole(self.written(tokens)):
            tokens.pop()
        data = self.written(tokens)
        canonical = self.engines.tokens.encode(data)
        ours, theirs = self._borders(tokens), self._borders(canonical)
        certain = self._certain(case.constraint, data)
        for start, stop in pairwise(sorted(set(ours) & set(theirs))):
            own = range(ours.index(start), ours.index(stop))
            if tokens[own.start : own.stop] != canonical[theirs.index(start) : theirs.index(stop)]:
                wrong = [ours[at] for at in own[1:] if not self._is_canonical(tokens, at)]
                beside = [place for border in wrong for place in (border - 1, border)]
                yield Spot(
                    data[start:stop].decode("utf-8", "replace"),
                    any(output.forced[at] for at in own),
                    any(certain[place] for place in beside or range(start, stop)),
                )

    def _is_canonical(self, tokens: Sequence[int], at: int) -> bool:
        """Whether the tokens before and behind the border `at` are what the tokenizer makes of their text, or, where that is not whole characters, of these."""
        raw = self.engines.tokens.raw
        start, stop = at - 1, at + 1
        while raw[tokens[start]][0] & 0xC0 == 0x80:
            start -= 1
        while not _whole(text := self.written(tokens[start:stop])):
            stop += 1
        return self.engines.tokens.encode(text) == list(tokens[start:stop])

    def _certain(self, constraint: Constraint, data: bytes) -> list[bool]:
        """Of each byte, whether the constraint leaves no choice about it when the text is written character by character."""
        grammar = self.engines.load(constraint, self._compile(constraint)[1])
        found: list[bool] = []
        while len(found) < len(data):
            known = len(grammar.forced_text().encode())
            piece = data[len(found) :].decode()
            piece = piece.encode()[:known].decode() if known else piece[0]
            for character in piece:
                for token in self.engines.tokens.encode(character.encode()):
                    grammar.advance(token)
            found += [known > 0] * len(piece.encode())
        return found

    def _borders(self, tokens: Sequence[int]) -> list[int]:
        return [0, *accumulate(map(len, self.vocabulary.bytes_of(tokens)))]

    def _compile(self, constraint: Constraint) -> tuple[str, bytes]:
        if constraint not in self._compiled:
            compiled = self.engines.compile(constraint)
            self._compiled[constraint] = compiled.engine, compiled.automaton
        return self._compiled[constraint]

    @staticmethod
    def _set_up(grammars: Grammars, engines: Engines) -> Grammars:
        grammars.set_up(engines)
        return grammars

    def _decode(
        self, cases: Sequence[Case], grammars: Grammars, sampling: Sampling, most: int
    ) -> list[Output]:
        runner = make_runner(self.model, tokens=POOL)
        runner.grammars = grammars
        driver = Driver(runner)
        outputs = [Output() for _ in cases]
        waiting = list(range(len(cases)))[::-1]
        places: dict[int, int] = {}
        pages: dict[int, list[int]] = {}
        left: dict[int, int] = {}
        ended: list[int] = []
        while waiting or left:
            start = []
            while waiting and len(left) < ROWS:
                place = waiting.pop()
                own = msgspec.structs.replace(sampling, constraint=cases[place].constraint)
                new = driver.new(self.vocabulary.encode(cases[place].prompt), most + JUMP + 1, own)
                start.append(new)
                places[new.seq], pages[new.seq] = place, new.pages
                left[new.seq] = len(new.token_ids)
            work = [Work(seq, count) for seq, count in left.items()]
            results = driver.step(work, start, ended)
            ended = []
            for seq, result in results.items():
                output = outputs[places[seq]]
                output.take(result, self.eos_ids, most)
                left[seq] = 1 + len(result.forced)
                if output.ended or output.error or len(output.tokens) >= most:
                    del left[seq]
                    ended.append(seq)
                    driver.free += pages.pop(seq)
        return outputs


def note(line: str) -> None:
    """Print what a test has found beside its verdict (`pytest -rA` shows it)."""
    print(line)  # noqa: T201


def _whole(data: bytes) -> bool:
    """Whether it is valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
