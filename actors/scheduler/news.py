"""What is to be told of requests: updates to their submitters, lines for the log, totals for the statistics."""

from __future__ import annotations

from collections import Counter

from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.effects import Effect, Note, Report
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.messages import Progress, Update


class News:
    """Gathered while one event is handled; each submitter is told all at once.

    Attributes:
        counters: totals since the start.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._updates: dict[Address, list[Update]] = {}
        self._notes: list[Note] = []

    def send(self, owner: Address, update: Update) -> None:
        """Tell a submitter."""
        self._updates.setdefault(owner, []).append(update)

    def tell(self, generation: Generation, since: int, prompt_since: int) -> None:
        """Tell its submitter, if it has one, its output from `since` on and its prompt's log probabilities from the `prompt_since`-th."""
        if generation.owner is not None:
            self.send(generation.owner, generation.update(since, prompt_since))

    def note(self, event: str, generation: Generation, **fields: float | str) -> None:
        """Log what happens to a request."""
        spec = generation.spec
        self._notes.append(Note(event, spec.id, spec.program, spec.trace, fields))

    def remark(self, event: str, **fields: float | str) -> None:
        """Log what happens to all."""
        self._notes.append(Note(event, fields=fields))

    def take(self) -> list[Effect]:
        """All of it, once."""
        reports = [Report(owner, Progress(updates)) for owner, updates in self._updates.items()]
        notes, self._updates, self._notes = self._notes, {}, []
        return [*reports, *notes]
