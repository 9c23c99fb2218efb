"""What every request went through, and the checker that says whether anything was lost or doubled. Plain data; the clock is passed in.

A request is asked for in one attempt or, by clients that retry, in several. The pieces of an attempt follow each other without gap or overlap from
where it began; attempts agree in what they have in common; the last attempt, and no other, has a terminal event, and has just one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

SHOWN = 20
"""Problems that are kept in words; the others are counted."""


@dataclass
class Piece:
    """Tokens that arrived together: when (monotonic seconds), and the index of the first one among all output tokens."""

    at: float
    first: int
    ids: tuple[int, ...]


@dataclass
class Attempt:
    """One try: its pieces, and the terminal events that came ("stop", "length", "abort", or an error's code)."""

    pieces: list[Piece] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    broken: str = ""


@dataclass
class Life:
    """One request.

    Attributes:
        name: unique within the history.
        asker: who asked: "http", "client", "program", …
        began: when.
        expected: what it must get, None while that is not known.
        outcome: of a program, what it returned, as text; compared with `wanted`.
        ended: when its asker had its end; 0 before.
        over: its asker gave it up (cancelled): whatever came is right, as far as it goes.
        mark: `id:` of the last event of its stream.
    """

    name: str
    asker: str
    began: float
    expected: Sequence[int] | None = None
    wanted: str | None = None
    outcome: str | None = None
    ended: float = 0.0
    over: bool = False
    mark: str = ""
    attempts: list[Attempt] = field(default_factory=lambda: [Attempt()])

    @property
    def last(self) -> Attempt:
        """The attempt under way, or the last one."""
        return self.attempts[-1]

    @property
    def tokens(self) -> int:
        """Output tokens that the last attempt has."""
        return self.last.pieces[-1].first + len(self.last.pieces[-1].ids) if self.last.pieces else 0

    def again(self, why: str) -> None:
        """The attempt broke off without a terminal event; the next one begins."""
        self.last.broken = why
        self.attempts.append(Attempt())

    def times(self) -> list[float]:
        """When anything arrived, in order."""
        return [piece.at for attempt in self.attempts for piece in attempt.pieces if piece.ids]


def problems(life: Life) -> Iterator[tuple[str, str]]:
    """Yield (kind, words) of what is wrong with a request: lost, doubled, differs, unfinished, ended twice, failed."""
    known: dict[int, int] = {}
    for number, attempt in enumerate(life.attempts):
        there: int | None = None
        for piece in attempt.pieces:
            if there is None:
                there = min(piece.first, len(known)) if number else 0
            if piece.first > there:
                yield "lost", f"tokens {there} to {piece.first - 1}"
            elif piece.first < there:
                yield "doubled", f"tokens {piece.first} to {there - 1}"
            for index, token in enumerate(piece.ids, piece.first):
                if known.setdefault(index, token) != token:
                    yield "differs", f"token {index} is {token} in attempt {number + 1}, was {known[index]}"
            there = piece.first + len(piece.ids)
        if attempt is not life.last and attempt.ends:
            yield "ended twice", f"attempt {number + 1} had ended with {attempt.ends}"
    ends = life.last.ends
    if len(ends) > 1:
        yield "ended twice", f"{ends}"
    elif life.over:
        return
    elif not ends:
        yield "unfinished", f"after {life.tokens} tokens {life.last.broken}".rstrip()
    elif ends[0] not in ("stop", "length"):
        yield "failed", ends[0]
    else:
        yield from _against(known, life.expected)
        if life.wanted is not None and life.outcome != life.wanted:
            yield "differs", f"outcome {_short(life.outcome)}, without faults {_short(life.wanted)}"


def _against(known: dict[int, int], expected: Sequence[int] | None) -> Iterator[tuple[str, str]]:
    """Compare with what must have come. A gap has been told of before."""
    if expected is None:
        return
    wrong = [n for n, token in sorted(known.items()) if n >= len(expected) or token != expected[n]]
    if wrong:
        yield "differs", f"{len(wrong)} of {len(expected)} tokens, the first one at {wrong[0]}"
    elif len(known) < len(expected) and max(known, default=-1) < len(expected) - 1:
        yield "lost", f"it ended after {len(known)} of {len(expected)} tokens"


def _short(text: str | None) -> str:
    return repr(text) if text is None or len(text) < 120 else repr(text[:117]) + "…"


class History:
    """All requests of a run."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.lives: list[Life] = []

    def __repr__(self) -> str:
        return f"<History {len(self.lives)} requests, {len(self.running())} running>"

    def begin(
        self, name: str, asker: str, *, expected: Sequence[int] | None = None, wanted: str | None = None
    ) -> Life:
        """A request begins."""
        life = Life(name, asker, self.now(), expected, wanted)
        self.lives.append(life)
        return life

    def piece(self, life: Life, first: int, ids: Sequence[int]) -> None:
        """Tokens arrived."""
        life.last.pieces.append(Piece(self.now(), first, tuple(ids)))

    def end(self, life: Life, how: str) -> None:
        """A terminal event arrived."""
        life.last.ends.append(how)
        life.ended = self.now()

    def running(self) -> list[Life]:
        """Those without an end."""
        return [life for life in self.lives if not life.ended and not life.over]

    def check(self) -> Verdict:
        """Look at every request."""
        verdict = Verdict(requests=len(self.lives))
        for life in self.lives:
            verdict.tokens += life.tokens
            verdict.retried += len(life.attempts) - 1
            verdict.longest = max(verdict.longest, life.ended - life.began)
            for kind, words in problems(life):
                verdict.kinds[kind] += 1
                if len(verdict.failures) < SHOWN:
                    verdict.failures.append(f"{kind}: {life.asker} {life.name}: {words}")
        return verdict


@dataclass
class Verdict:
    """What the checker found: how many requests and tokens, attempts beyond the first, seconds of the longest request, problems by kind, and some of them in words."""

    requests: int = 0
    tokens: int = 0
    retried: int = 0
    longest: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
