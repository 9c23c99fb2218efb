"""Worker and cache as the scheduler sees them: who is up, and whether all three agree on a batch epoch."""

from __future__ import annotations

from enum import Enum, auto

from sgl_actors.actors.cache.messages import Reset as ResetCache
from sgl_actors.actors.scheduler.effects import Effect, ToCache, ToWorker
from sgl_actors.actors.worker.messages import Describe, ModelInfo
from sgl_actors.actors.worker.messages import Reset as ResetWorker


class Stage(Enum):
    """How far the way from nothing to a running batch has been gone."""

    ABSENT = auto()
    """No worker."""
    DESCRIBING = auto()
    """`Describe` is with the worker."""
    QUIETING = auto()
    """`Reset` is with the worker: it finishes what is in flight."""
    QUIET = auto()
    """The worker touches no page any more; no cache is up."""
    EMPTYING = auto()
    """`Reset` is with the cache."""
    READY = auto()
    """Pages may be granted and steps sent."""


class Links:
    """Goes through the stages in order. Each event returns what to say next; late answers change nothing.

    Whatever is lost on the way (worker, cache, the worker's batch), the next attempt has a new epoch, and no page
    is granted in it before the worker has said that no earlier step touches one.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.stage = Stage.ABSENT
        self.info: ModelInfo | None = None
        self._cache = False

    def __repr__(self) -> str:
        return f"<Links {self.stage.name} epoch={self.epoch} cache={'up' if self._cache else 'down'}>"

    @property
    def ready(self) -> bool:
        """Whether pages may be granted and steps sent."""
        return self.stage is Stage.READY

    def resume(self, info: ModelInfo | None, *, cache: bool) -> None:
        """Go on in this epoch with what serves it, or with None begin anew once a worker is up; `cache`: one is up."""
        self._cache = cache
        if info is not None:
            self.stage, self.info = Stage.READY, info

    @property
    def quieting(self) -> bool:
        """The worker has not said yet that it has finished what was in flight."""
        return self.stage is Stage.QUIETING

    def remind(self) -> list[Effect]:
        """Ask it once more: a `Reset` may have been lost, and says nothing new to a worker that has it."""
        return [ToWorker(ResetWorker(self.epoch))] if self.quieting else []

    def worker_up(self) -> list[Effect]:
        """A worker incarnation is up."""
        self.stage, self.info = Stage.DESCRIBING, None
        return [ToWorker(Describe())]

    def worker_down(self) -> list[Effect]:
        """It has ended, and all KV with it."""
        self.stage, self.info = Stage.ABSENT, None
        return []

    def described(self, info: ModelInfo) -> list[Effect]:
        """The worker's answer to `Describe`."""
        if self.stage is not Stage.DESCRIBING:
            return []
        self.info = info
        return self._quiet()

    def batch_lost(self) -> list[Effect]:
        """The worker does not hold our batch, or the answers do not fit what was sent."""
        return self._quiet() if self.stage is Stage.READY else []

    def quieted(self, epoch: int) -> list[Effect]:
        """The worker's `ResetDone`."""
        if self.stage is not Stage.QUIETING or epoch != self.epoch:
            return []
        self.stage = Stage.QUIET
        return self._empty() if self._cache else []

    def cache_up(self) -> list[Effect]:
        """A cache incarnation is up."""
        self._cache = True
        return self._empty() if self.stage is Stage.QUIET else []

    def cache_down(self) -> list[Effect]:
        """It has ended, and all leases with it."""
        self._cache = False
        return self._quiet() if self.stage in (Stage.READY, Stage.EMPTYING) else []

    def emptied(self, epoch: int) -> list[Effect]:
        """The cache's answer to `Reset`."""
        if self.stage is Stage.EMPTYING and epoch == self.epoch:
            self.stage = Stage.READY
        return []

    def _quiet(self) -> list[Effect]:
        self.epoch += 1
        self.stage = Stage.QUIETING
        return [ToWorker(ResetWorker(self.epoch))]

    def _empty(self) -> list[Effect]:
        info = self.info
        assert info is not None
        self.stage = Stage.EMPTYING
        revision = f"{info.path} {info.dtype}"
        return [ToCache(ResetCache(self.epoch, info.pages, info.page_size, revision))]
