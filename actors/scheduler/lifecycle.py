"""What becomes of requests: they come, run, give way, and end. Every change of place of one happens here."""

from __future__ import annotations

from sgl_actors.actors.cache.messages import Lease
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.scheduler.admission import failed, refusal
from sgl_actors.actors.scheduler.batch import Batch
from sgl_actors.actors.scheduler.commits import Commits
from sgl_actors.actors.scheduler.estimate import OutputEstimate
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.messages import Finish, ModelInfo, Sequence, Update
from sgl_actors.actors.scheduler.news import News
from sgl_actors.actors.scheduler.queue import Queue
from sgl_actors.actors.scheduler.requests import Requests
from sgl_actors.actors.scheduler.settings import Settings
from sgl_actors.actors.worker.messages import SequenceResult
from sgl_actors.errors import InvalidRequest, NotReady, Overloaded, RemoteError


class Lifecycle:
    """Moves requests between `requests`, `queue` and `batch`, and has others told of it. Owns nothing but `draining`: new ones are refused, for good."""

    def __init__(
        self,
        settings: Settings,
        requests: Requests,
        queue: Queue,
        batch: Batch,
        estimate: OutputEstimate,
        commits: Commits,
        news: News,
    ) -> None:
        self.draining = False
        self._settings = settings
        self._requests = requests
        self._queue = queue
        self._batch = batch
        self._estimate = estimate
        self._commits = commits
        self._news = news

    def enter(self, sequence: Sequence, owner: Address, now: float, info: ModelInfo | None) -> None:
        """A new one waits, or ends at once; `info` is what the worker serves, if known."""
        options, counters = self._settings.options, self._news.counters
        counters["requests"] += 1
        counters["prompt_tokens"] += len(sequence.prompt)
        full = len(self._queue) >= options.queue
        generation = self._requests.add(sequence, owner)
        self._queue.arrive(generation, counters["computed_tokens"])
        self._queue.changed()
        self._news.note("submitted", generation, prompt=len(sequence.prompt), output=len(sequence.output))
        if self.draining:
            self.end(generation, failed(NotReady("the node is draining")))
        elif (refused := refusal(sequence, info)) is not None:
            self.end(generation, refused)
        elif sequence.output and (finish := generation.conclusion()) is not None:
            self.end(generation, finish)
        elif full:
            self.end(generation, failed(Overloaded(f"{options.queue} requests wait already")))
        elif timeout := sequence.timeout or options.timeout:
            self._requests.limit(generation, now + timeout)

    def attach(self, generation: Generation, sequence: Sequence, owner: Address) -> None:
        """The asker of a request has submitted it again: tell it all from what it has on. A stranger is refused."""
        if not generation.goes_on(sequence):
            error = InvalidRequest(f"id {sequence.id} is in use by another request", param="id")
            self._news.send(owner, Update(sequence.id, len(sequence.output), [], finish=failed(error)))
            return
        self._requests.orphans.drop(generation)
        generation.owner = owner
        since = min(len(sequence.output), generation.reported)
        self._news.note("attached", generation, output=since)
        self._news.tell(generation, since, len(generation.prompt_logprobs) if sequence.output else 0)

    def admit(self, generation: Generation, lease: Lease, line: list[Generation], page_size: int) -> None:
        """It has a lease and runs; `line` is what it was chosen from, and still waits."""
        self._queue.admitted(generation, lease.cached, line)
        first = generation.cached < 0
        generation.admit(lease, page_size)
        self._batch.admit(generation)
        if first:
            self._news.counters["cached_tokens"] += generation.cached
        self._news.note("admitted", generation, cached=lease.cached, pages=len(lease.pages))

    def advance(self, generation: Generation, result: SequenceResult) -> None:
        """A step that named it has run."""
        if generation.finish is not None:
            self._let_go(generation)
            return
        self._requests.quarantine.stepped(generation)
        finish = generation.conclusion()
        since = generation.before
        if result.error:
            finish = Finish("error", None, result.code or RemoteError.code, result.error)
            since = generation.reported
        news = generation.reported - since
        self._count(result, news)
        scored = 0 if result.error else len(result.prompt_logprobs)
        known = len(generation.prompt_logprobs) - scored
        if finish is not None:
            self.end(generation, finish, since=since, prompt_since=known)
        elif news or scored:
            self._news.tell(generation, since, known)
        if finish is None and not generation.shared and (generation.prefilled or self._queue.deferring):
            self._share(generation)

    def make_room(self) -> None:
        """Somebody cannot go on for want of pages: retract the request of the lowest class that loses the least work. No step is in flight."""
        modest = [one for one in self._batch.running if one.modest]
        victim = min(modest, key=lambda one: (one.priority, one.computed - one.lent, -one.arrival))
        self._news.counters["retracted"] += 1
        self._estimate.wrong()
        self._news.note("retracted", victim, computed=victim.computed, output=victim.generated)
        self.put_back(victim)
        victim.modest = False

    def put_back(self, generation: Generation) -> None:
        """It gives its pages back, with what it has computed, and waits again in its old place. No step in flight names it."""
        self._batch.leave(generation)
        self._queue.computed(generation)
        self._commits.release(generation)
        generation.retract()
        self._queue.enter(generation)

    def restart(self) -> int:
        """All pages and steps are gone: what ran waits again in its old place; how many did."""
        running = self._batch.clear()
        self._news.counters["requeued"] += len(running)
        for generation in running:
            generation.retract()
            self._queue.enter(generation)
        self._queue.forget()
        self._queue.changed()
        self._commits.entries.clear()
        return len(running)

    def end(
        self,
        generation: Generation,
        finish: Finish,
        *,
        since: int | None = None,
        prompt_since: int | None = None,
    ) -> None:
        """The one place where a request ends. Its submitter is told of its output from `since` on, if that is not known yet."""
        assert generation.finish is None, f"{generation!r} ends twice"
        generation.finish = finish
        self._requests.remove(generation)
        self._queue.changed()
        self._learn(generation, finish)
        self._news.tell(
            generation,
            generation.reported if since is None else since,
            len(generation.prompt_logprobs) if prompt_since is None else prompt_since,
        )
        self._news.note(
            "finished", generation, reason=finish.reason, code=finish.code, output=generation.generated
        )
        if not generation.target:
            self._queue.leave(generation)
            return
        self._batch.leave(generation)
        self._queue.computed(generation)
        if generation.busy:
            # A request that goes on from its text may come before the step in flight ends.
            self._commits.offer(generation)
        self._let_go(generation)

    def _learn(self, generation: Generation, finish: Finish) -> None:
        """Count how it ended; its length says something about others if nobody cut it short."""
        self._news.counters[f"finished_{finish.reason}"] += 1
        long_enough = generation.spec.max_tokens >= self._estimate.first
        if finish.reason == "stop" or (finish.reason == "length" and long_enough):
            self._estimate.ended(generation.generated)

    def _count(self, result: SequenceResult, news: int) -> None:
        counters = self._news.counters
        counters["generation_tokens"] += news
        counters["forced_tokens"] += len(result.forced) + (result.token_id >= 0 and not result.chosen)
        counters["held_back_tokens"] += result.held_back
        counters["drafted_tokens"] += result.drafted
        counters["accepted_tokens"] += len(result.accepted)

    def _let_go(self, generation: Generation) -> None:
        """Give the pages of an ended request back once no step in flight names them."""
        if not generation.busy:
            self._commits.release(generation)

    def _share(self, generation: Generation) -> None:
        """Offer what is computed of a prompt to others: all of it, or while somebody waits for it each chunk."""
        self._queue.changed()
        if generation.prefilled:
            generation.shared = True
            self._queue.computed(generation)
        self._commits.offer(generation)
