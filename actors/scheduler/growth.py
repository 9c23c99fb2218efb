"""More pages for those who run and grow."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_actors.actors.cache.messages import Grant
from sgl_actors.actors.scheduler.batch import Batch
from sgl_actors.actors.scheduler.commits import Commits
from sgl_actors.actors.scheduler.estimate import OutputEstimate
from sgl_actors.actors.scheduler.generation import MARGIN, Generation
from sgl_actors.actors.worker.messages import ModelInfo


@dataclass(frozen=True, slots=True)
class GrowthRound:
    """A `Grant` of more pages that the cache has not answered: for whom, and how many leases had ended when it was asked."""

    epoch: int
    growing: list[Generation]
    releases: int


class Growth:
    """Asks for as many as expected; after a refusal for no more than needed, and after another not before a lease has ended."""

    def __init__(self, batch: Batch, estimate: OutputEstimate, commits: Commits) -> None:
        self._batch = batch
        self._estimate = estimate
        self._commits = commits
        self._sparing = False
        self._refused_at = -1

    @property
    def refused(self) -> bool:
        """There were too few pages for those who run, and no lease has ended since."""
        return self._refused_at == self._commits.releases

    @property
    def starved(self) -> bool:
        """And so somebody cannot go on."""
        return self.refused and any(one.stalled for one in self._batch.running)

    def ask(self, epoch: int, info: ModelInfo) -> tuple[GrowthRound, Grant] | None:
        """Pages for those who need them soon, those first who need them first."""
        growing = [one for one in self._batch.running if one.short]
        if not growing or self.refused:
            return None
        growing.sort(key=lambda one: one.capacity - one.planned)
        more = [
            one.more(MARGIN if self._sparing else self._estimate.growth(one.generated), info.page_size)
            for one in growing
        ]
        return GrowthRound(epoch, growing, self._commits.releases), Grant(epoch, [], more)

    def take(self, turn: GrowthRound, more: list[list[int]], info: ModelInfo) -> None:
        """The pages came, or some of them."""
        for generation, pages in zip(turn.growing, more, strict=False):
            generation.grow(pages, info.page_size)
        refused = len(more) < len(turn.growing)
        if refused and self._sparing:
            self._refused_at = turn.releases
        self._sparing = refused

    def retry(self) -> None:
        """Ask again, whether a lease has ended or not."""
        self._refused_at = -1
