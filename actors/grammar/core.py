"""Which constraint is compiled next, who waits for it, and what is known already: plain state, no clock and no process.

Constraints wait in the order in which they were first asked for, one is compiled at a time, and all who ask for the same wait for the same
compilation. Results are kept by content, errors too, the least recently asked for go first. One that has crashed the compiler is tried once more when it
is asked for again; after the second crash it is refused.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Generic, TypeVar

from sgl_actors.actors.grammar.messages import Compiled
from sgl_actors.errors import InvalidRequest, Overloaded
from sgl_actors.lang.constraints.constraint import Constraint

KEPT_BYTES = 64 << 20
"""Sources and automata that are kept, together."""
OFFENDERS = 4096
"""Constraints that crashed the compiler and are remembered."""
CRASHES = 2
"""So many, and a constraint is not tried again."""

W = TypeVar("W")
Outcome = Compiled | InvalidRequest


class Compilations(Generic[W]):
    """See the module. `W` is whoever waits.

    Attributes:
        counters: asked, hits, joined, compiled (and by engine), invalid, crashed, refused.
    """

    def __init__(self, kept: int, queue: int, kept_bytes: int = KEPT_BYTES) -> None:
        """Keep at most `kept` results of at most `kept_bytes` together; let at most `queue` constraints wait."""
        self._most, self._most_bytes, self._queue = kept, kept_bytes, queue
        self._kept: OrderedDict[Constraint, Outcome] = OrderedDict()
        self._bytes = 0
        self._waiting: dict[Constraint, list[W]] = {}
        self._running: Constraint | None = None
        self._offenders: OrderedDict[bytes, int] = OrderedDict()
        self.counters: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Compilations {self.waiting} waiting, {self.kept} kept, running={self._running is not None}>"

    @property
    def line(self) -> Mapping[Constraint, list[W]]:
        """Constraints in order, the one that is compiled first, and who waits for each."""
        return self._waiting

    @property
    def results(self) -> Mapping[Constraint, Outcome]:
        """What is kept, the least recently asked for first."""
        return self._kept

    @property
    def offenders(self) -> Mapping[bytes, int]:
        """Digests of those that crashed the compiler, and how often."""
        return self._offenders

    def adopt(
        self,
        line: Iterable[tuple[Constraint, list[W]]],
        results: Iterable[tuple[Constraint, Outcome]],
        offenders: Iterable[tuple[bytes, int]],
    ) -> None:
        """Go on, new, where another one stopped."""
        self._waiting.update(line)
        self._offenders.update(offenders)
        for constraint, outcome in results:
            self._keep(constraint, outcome)

    @property
    def waiting(self) -> int:
        """Constraints in line."""
        return len(self._waiting) - (self._running is not None)

    @property
    def kept(self) -> int:
        """Results that are kept."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """And their size."""
        return self._bytes

    def ask(self, constraint: Constraint, waiter: W) -> Outcome | None:
        """What is known of it; None if `waiter` has to wait, until an `end` or `crash` returns it.

        Raises:
            Overloaded: too many wait already.
        """
        self.counters["asked"] += 1
        if constraint in self._kept:
            self.counters["hits"] += 1
            self._kept.move_to_end(constraint)
            return self._kept[constraint]
        if constraint in self._waiting:
            self.counters["joined"] += 1
            self._waiting[constraint].append(waiter)
            return None
        if self._offenders and self._offenders.get(_digest(constraint), 0) >= CRASHES:
            self.counters["refused"] += 1
            message = f"{constraint.kind}: it has ended the compiler {CRASHES} times and is not tried again; make it smaller"
            return InvalidRequest(message, param=constraint.kind)
        if self.waiting >= self._queue:
            raise Overloaded(
                f"{self.waiting} constraints wait to be compiled, and no more may ([grammar] queue): retry in a moment"
            )
        self._waiting[constraint] = [waiter]
        return None

    def forget(self, constraint: Constraint, waiter: W) -> None:
        """`waiter` waits no longer. What nobody waits for is not begun; what has begun goes on."""
        waiters = self._waiting.get(constraint, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters and constraint != self._running:
                del self._waiting[constraint]

    def begin(self) -> Constraint | None:
        """The one that was begun, else the next; None if nobody waits."""
        if self._running is None:
            self._running = next(iter(self._waiting), None)
        return self._running

    def end(self, outcome: Outcome | None) -> list[W]:
        """The one that was begun is done; None if it could not be tried. Returns who waited."""
        constraint, waiters = self._finish()
        if isinstance(outcome, Compiled):
            self.counters["compiled"] += 1
            self.counters[f"compiled_{outcome.engine}"] += 1
            self._offenders.pop(_digest(constraint), None)
        elif outcome is not None:
            self.counters["invalid"] += 1
        if outcome is not None:
            self._keep(constraint, outcome)
        return waiters

    def crash(self) -> list[W]:
        """The one that was begun has ended the compiler. Returns who waited."""
        constraint, waiters = self._finish()
        self.counters["crashed"] += 1
        digest = _digest(constraint)
        self._offenders[digest] = self._offenders.pop(digest, 0) + 1
        if len(self._offenders) > OFFENDERS:
            self._offenders.popitem(last=False)
        return waiters

    def _finish(self) -> tuple[Constraint, list[W]]:
        constraint, self._running = self._running, None
        assert constraint is not None
        return constraint, self._waiting.pop(constraint)

    def _keep(self, constraint: Constraint, outcome: Outcome) -> None:
        self._kept[constraint] = outcome
        self._bytes += _size(constraint, outcome)
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._bytes -= _size(*self._kept.popitem(last=False))


def _size(constraint: Constraint, outcome: Outcome) -> int:
    result = len(outcome.automaton) if isinstance(outcome, Compiled) else len(outcome.message)
    return len(constraint.source) + result


def _digest(constraint: Constraint) -> bytes:
    return sha256(f"{constraint.kind}\0{constraint.source}".encode("utf-8", "surrogatepass")).digest()
