"""The scheduler's core between a fake worker and a real cache, for tests of single rules."""

from __future__ import annotations

from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.messages import Commit, Grant, Granted, Match, Matched, Pool, Probe, Want, pack
from sgl_actors.actors.cache.messages import Reset as ResetCache
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.core import SchedulerCore
from sgl_actors.actors.scheduler.effects import Effect, Report, ToCache, ToWorker
from sgl_actors.actors.scheduler.messages import (
    Finish,
    ModelInfo,
    Options,
    Sampling,
    Sequence,
    Update,
)
from sgl_actors.actors.worker.fake import FakeModel, Poisoned
from sgl_actors.actors.worker.messages import Describe, Step, StepDone
from sgl_actors.actors.worker.messages import Reset as ResetWorker

ASKER = Address("tokenizer", 1)
OTHER = Address("tokenizer", 2)
GREEDY = Sampling(0)
POISON = 999


def info(pages: int = 200, page_size: int = 1, context: int = 100) -> ModelInfo:
    return ModelInfo("m", "m", "Fake", context, 1000, (2,), pages, page_size, 1, "float32", "cpu", 1)


def request(name: str, prompt: list[int], max_tokens: int = 3, **fields: object) -> Sequence:
    return Sequence(name, prompt, max_tokens, fields.pop("sampling", GREEDY), **fields)  # type: ignore[arg-type]


class Desk:
    """Carries messages between the three by hand, so that a test says what arrives when.

    First come, first served without sharing unless told otherwise. A `Match` is answered at once, after
    the commits before it.
    """

    def __init__(
        self,
        model: ModelInfo | None = None,
        *,
        ahead: int = 0,
        up: bool = True,
        drafting: bool = False,
        **options: object,
    ) -> None:
        self.info = model or info()
        self.drafting = drafting
        order = {"policy": "fcfs", "sharing": False, "stall": 0.0, "overlap": bool(ahead)}
        self.core = SchedulerCore(Options(**{**order, **options}), epoch=100)  # type: ignore[arg-type]
        self.model = FakeModel(self.info, poison=POISON, drafting=self.drafting)
        self.crashes = 0
        self.cache = RadixCache(0, 1)
        self.to_worker: list[Step | Describe | ResetWorker] = []
        self.to_cache: list[Commit | Match | Grant | ResetCache] = []
        self.commits: list[Commit] = []
        self.wants: list[Want] = []
        self.steps: list[Step] = []
        self.updates: list[tuple[Address, Update]] = []
        self.progress = 0
        self.now = 0.0
        if up:
            self.take(self.core.worker_up())
            self.take(self.core.cache_up())
            self.run()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToWorker(message):
                    self.to_worker.append(message)
                case ToCache(Match(probes)):
                    while self.to_cache and isinstance(self.to_cache[0], Commit):
                        self.cache_once()
                    matched = Matched(self.cache.match(probes))
                    self.take(self.core.matched(self.core.links.epoch, matched))
                case ToCache(message):
                    self.to_cache.append(message)
                case Report(owner, progress):
                    self.progress += 1
                    self.updates += [(owner, update) for update in progress.updates]
                case _:
                    pass

    def submit(self, *sequences: Sequence, owner: Address = ASKER) -> None:
        self.take(self.core.submit(sequences, owner, self.now))

    def cache_once(self) -> None:
        """The cache handles its oldest message."""
        match self.to_cache.pop(0):
            case Commit() as commit:
                self.commits.append(commit)
                for entry in commit.entries:
                    self.cache.commit(entry)
            case Grant() as grant:
                self.wants += grant.wants
                leases, more = self.cache.serve(grant.wants, grant.more)
                self.take(self.core.granted(grant.epoch, Granted(grant.epoch, leases, more)))
            case ResetCache() as reset:
                self.cache = RadixCache(reset.pages, reset.page_size)
                self.take(
                    self.core.emptied(Pool(reset.epoch, reset.pages, reset.page_size, reset.pages, 0, 0))
                )

    def worker_once(self) -> None:
        """The worker handles its oldest message."""
        match self.to_worker.pop(0):
            case Step() as step:
                self.steps.append(step)
                try:
                    done = self.model.step(step)
                except Poisoned:
                    self.restart_worker()
                    return
                assert isinstance(done, StepDone)
                self.take(self.core.step_done(done))
            case ResetWorker() as reset:
                self.take(self.core.quieted(self.model.reset(reset.epoch)))
            case Describe():
                self.take(self.core.described(self.info))

    def restart_worker(self, *, crashed: bool = True) -> None:
        """The worker goes down, with what was on its way to it, and another one comes up."""
        self.crashes += crashed
        self.to_worker.clear()
        self.to_cache.clear()
        self.model = FakeModel(self.info, poison=POISON, drafting=self.drafting)
        self.take(self.core.worker_down(crashed=crashed))
        self.take(self.core.worker_up())

    def run(self, rounds: int = 1000) -> None:
        """Until nothing is left to carry, the cache first."""
        while (self.to_cache or self.to_worker) and rounds:
            self.cache_once() if self.to_cache else self.worker_once()
            rounds -= 1

    def cached(self, tokens: list[int]) -> int:
        """Leading tokens of these that are cached."""
        return self.cache.match([Probe(pack(tokens))])[0]

    def output(self, name: str) -> list[int]:
        tokens: list[int] = []
        for _, update in self.updates:
            if update.id == name:
                tokens[update.first_index :] = update.token_ids
        return tokens

    def finish(self, name: str) -> Finish:
        ends = [
            update.finish for _, update in self.updates if update.id == name and update.finish is not None
        ]
        assert len(ends) == 1, f"{name} ended {len(ends)} times"
        return ends[0]

    def idle(self) -> None:
        """Nothing is left behind."""
        assert self.core.settled
        assert self.cache.check() == []
        assert (self.cache.leases, self.cache.leased) == (0, 0)
