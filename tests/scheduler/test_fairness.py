"""Bounded waiting over adversarial histories of a queue.

The model keeps books of its own: who was really overtaken by how much, counted as the statement in `fairness` says it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sgl_actors.actors.scheduler.fairness import Choice, admitted, bounded
from sgl_actors.actors.scheduler.policy import policy_named
from tests.scheduler.queued import Queued

POLICIES = ("fcfs", "lpm", "dfs-weight", "hrrn")
LIMITS = (0, 1, 7, 30, 80)
LENGTHS = (1, 2, 5, 20, 60)
RANKS = (-1, 0, 2)


def nobody(_request: Queued) -> bool:
    """Nobody waits for another's prefix."""
    return False


def everybody(_request: Queued) -> bool:
    """All wait for another's prefix."""
    return True


class Queue:
    """A waiting line, a cache that grants from the front, and the books."""

    def __init__(self, policy: str, limit: int) -> None:
        self.policy = policy_named(policy)
        self.limit = limit
        self.waiting: list[Queued] = []
        self.running: list[Queued] = []
        self.admissions: list[Queued] = []
        self.overtaken: Counter[int] = Counter()
        self.processed = 0
        self.arrivals = 0
        self.asked: tuple[list[Choice[Queued]], list[Queued]] | None = None

    def arrive(self, length: int, hint: int, priority: int = 0) -> Queued:
        self.arrivals += 1
        key = bytes(8 * length)
        request = Queued(self.arrivals, length, min(hint, length - 1), priority, self.processed, key)
        self.waiting.append(request)
        return request

    def ask(self, room: int, deferred: Callable[[Queued], bool]) -> None:
        """Choose; the answer may come later."""
        ordered = self.policy.order(self.waiting, self.processed)
        self.asked = (list(bounded(ordered, self.limit, room, deferred)), list(self.waiting))

    def answer(self, cached: Callable[[Queued], int], fit: int) -> None:
        """The cache grants the first `fit`, up to the first that finds less in the cache than it must."""
        assert self.asked is not None
        (choices, line), self.asked = self.asked, None
        for choice in choices[:fit]:
            request = choice.request
            found = min(cached(request), request.length - 1)
            if found < choice.least:
                break
            line.remove(request)
            self.waiting.remove(request)
            self.running.append(request)
            self.admissions.append(request)
            self.processed += request.length - found
            for one in line:
                if request.arrival > one.arrival and request.priority <= one.priority:
                    self.overtaken[one.arrival] += request.length - found
            admitted(request, found, line)

    def retract(self, request: Queued, generated: int) -> None:
        self.running.remove(request)
        request.length += generated
        self.waiting.append(request)


class History(RuleBasedStateMachine):
    """An adversary chooses arrivals, hints, what the cache really has, room, what fits, who defers, and who comes back."""

    @initialize(policy=st.sampled_from(POLICIES), limit=st.sampled_from(LIMITS))
    def begin(self, policy: str, limit: int) -> None:
        self.queue = Queue(policy, limit)
        self.returned = False

    @rule(
        requests=st.lists(
            st.tuples(st.sampled_from(LENGTHS), st.integers(0, 60), st.sampled_from(RANKS)),
            min_size=1,
            max_size=4,
        )
    )
    def arrive(self, requests: list[tuple[int, int, int]]) -> None:
        for length, hint, priority in requests:
            self.queue.arrive(length, hint, priority)

    @rule(data=st.data())
    def rematch(self, data: st.DataObject) -> None:
        """Hints change while requests wait."""
        for request in self.queue.waiting:
            request.hint = data.draw(st.integers(0, request.length - 1))

    @precondition(lambda self: self.queue.waiting and self.queue.asked is None)
    @rule(room=st.integers(0, 6), data=st.data())
    def ask(self, room: int, data: st.DataObject) -> None:
        arrivals = [request.arrival for request in self.queue.waiting]
        deferring = data.draw(st.sets(st.sampled_from(arrivals)))
        self.queue.ask(room, lambda request: request.arrival in deferring)

    @precondition(lambda self: self.queue.asked is not None)
    @rule(fit=st.integers(0, 6), stale=st.lists(st.integers(-20, 20), min_size=6, max_size=6))
    def answer(self, fit: int, stale: list[int]) -> None:
        offsets = iter(stale)
        self.queue.answer(lambda request: max(0, request.hint + next(offsets)), fit)

    @precondition(lambda self: self.queue.running)
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        """One comes back in its old place, with the tokens it has generated; also while a round is out."""
        self.returned = True
        generated = data.draw(st.integers(0, 20))
        self.queue.retract(data.draw(st.sampled_from(self.queue.running)), generated)

    @invariant()
    def nobody_is_overtaken_by_more_than_the_limit(self) -> None:
        for request in self.queue.waiting + self.queue.running:
            overtaken = self.queue.overtaken[request.arrival]
            assert request.overtaken == overtaken
            assert overtaken <= self.queue.limit or not self.queue.limit

    @invariant()
    def the_oldest_of_a_class_is_overtaken_most(self) -> None:
        """As long as nobody has come back."""
        if not self.returned:
            least: dict[int, int] = {}
            for request in sorted(self.queue.waiting, key=lambda one: one.arrival):
                assert request.overtaken <= least.get(request.priority, request.overtaken)
                least[request.priority] = request.overtaken

    def teardown(self) -> None:
        """With nothing more to come, all are admitted, also those who always defer and find nothing in the cache."""
        queue = getattr(self, "queue", None)
        if queue is None:
            return
        if queue.asked is not None:
            queue.answer(lambda _request: 0, 6)
        for _ in range(len(queue.waiting)):
            for request in queue.waiting:
                request.hint = 0
            queue.ask(1, nobody)
            queue.answer(lambda _request: 0, 1)
            self.nobody_is_overtaken_by_more_than_the_limit()
        assert not queue.waiting


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def rounds_until_admitted(queue: Queue, victim: Queued, newcomers: list[tuple[int, int]], most: int) -> int:
    """Rounds of one admission, a newcomer (length, hint) before each, while `victim` always defers; at most `most`."""
    for count in range(1, most + 1):
        queue.arrive(*newcomers[count % len(newcomers)])
        queue.ask(1, lambda request: request is victim)
        queue.answer(lambda request: request.hint, 1)
        if victim in queue.running:
            return count
    return most + 1


@pytest.mark.parametrize("policy", POLICIES)
@given(
    limit=st.sampled_from([limit for limit in LIMITS if limit]),
    before=st.lists(st.sampled_from(LENGTHS), max_size=4),
    newcomers=st.lists(
        st.sampled_from([(2, 1), (20, 19), (60, 50), (60, 0), (1, 0)]), min_size=1, max_size=4
    ),
)
def test_nobody_starves_however_many_come_and_however_it_is_deferred(
    policy: str, limit: int, before: list[int], newcomers: list[tuple[int, int]]
) -> None:
    """A cold request waits for those before it and for at most `limit` tokens of later ones, although it always defers."""
    queue = Queue(policy, limit)
    for length in before:
        queue.arrive(length, 0)
    victim = queue.arrive(60, 0)
    most = len(before) + limit + 1
    assert rounds_until_admitted(queue, victim, newcomers, most) <= most


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight"])
def test_without_a_limit_a_cold_request_starves(policy: str) -> None:
    """What the limit is for: as long as hot requests keep coming, a cold one is never admitted; with a limit it is."""
    for limit, starves in ((0, True), (100, False)):
        queue = Queue(policy, limit)
        cold = queue.arrive(60, 0)
        cold.key = b"\xff" * 480
        for _ in range(2):
            queue.arrive(60, 50)
        for _ in range(1000):
            queue.arrive(60, 50)
            queue.ask(1, nobody)
            queue.answer(lambda request: request.hint, 1)
        assert (cold in queue.waiting) is starves


@given(
    limit=st.sampled_from(LIMITS),
    arrivals=st.lists(
        st.tuples(st.sampled_from(LENGTHS), st.integers(0, 60), st.sampled_from(RANKS)), max_size=20
    ),
    fits=st.lists(st.integers(0, 4), max_size=20),
)
def test_first_come_admits_each_class_in_the_order_of_arrival(
    limit: int, arrivals: list[tuple[int, int, int]], fits: list[int]
) -> None:
    """fcfs overtakes nobody, whatever hints and grants say, so no lease is refused and nothing is counted."""
    queue = Queue("fcfs", limit)
    for at in range(max(len(arrivals), len(fits))):
        for length, hint, priority in arrivals[at : at + 1]:
            queue.arrive(length, hint, priority)
        queue.ask(4, nobody)
        assert all(choice.least == 0 for choice in queue.asked[0])  # type: ignore[index]
        queue.answer(lambda _request: 0, fits[at] if at < len(fits) else 1)
    for rank in RANKS:
        order = [one.arrival for one in queue.admissions if one.priority == rank]
        assert order == sorted(order)
    assert not any(one.overtaken for one in queue.waiting + queue.running)


@settings(max_examples=500, deadline=None)
@given(
    limit=st.sampled_from(LIMITS),
    room=st.integers(0, 8),
    requests=st.lists(
        st.tuples(
            st.sampled_from(LENGTHS),
            st.integers(0, 60),
            st.sampled_from(RANKS),
            st.sampled_from((0, 0.3, 0.8, 1)),
        ),
        min_size=2,
        max_size=8,
    ),
    data=st.data(),
)
def test_choosing_is_what_looking_at_everybody_gives(
    limit: int, room: int, requests: list[tuple[int, int, int, float]], data: st.DataObject
) -> None:
    """Looking at the oldest of each class chooses as a search among all who would be overtaken does."""
    line = [
        Queued(at, length, min(hint, length - 1), rank, overtaken=int(limit * share))
        for at, (length, hint, rank, share) in enumerate(requests)
    ]
    for rank in RANKS:  # as it is while nobody comes back
        group = [one for one in line if one.priority == rank]
        for one, overtaken in zip(group, sorted((one.overtaken for one in group), reverse=True), strict=True):
            one.overtaken = overtaken
    ordered = data.draw(st.permutations(line))
    deferring = data.draw(st.sets(st.integers(0, len(line)), max_size=3))
    chosen = list(bounded(ordered, limit, room, lambda one: one.arrival in deferring))
    expected = naive(ordered, limit, room, deferring)
    assert [(choice.request, choice.least) for choice in chosen] == expected


def naive(ordered: list[Queued], limit: int, room: int, deferring: set[int]) -> list[tuple[Queued, int]]:
    """`bounded`, as the statement reads."""
    chosen: list[tuple[Queued, int]] = []
    left = {one.arrival: one for one in ordered}

    def behind(request: Queued) -> list[Queued]:
        return [
            one for one in left.values() if one.arrival < request.arrival and one.priority >= request.priority
        ]

    def too_much(request: Queued) -> list[Queued]:
        found = []
        for one in behind(request):
            passed = [
                other.uncached
                for other, _ in chosen
                if other.arrival > one.arrival and other.priority <= one.priority
            ]
            if one.overtaken + sum(passed) + request.uncached > limit:
                found.append(one)
        return found

    for candidate in ordered:
        while candidate.arrival in left and candidate.arrival not in deferring and len(chosen) < room:
            request = candidate
            while limit and (found := too_much(request)):
                request = min(found, key=lambda one: (-one.priority, one.arrival))
            chosen.append((request, request.hint if limit and behind(request) else 0))
            del left[request.arrival]
    return chosen


def test_deferral_is_asked_after_each_choice_has_been_taken() -> None:
    """Whoever iterates may defer requests because of a choice just made: siblings wait for the first of them."""
    line = [Queued(at, 10) for at in range(6)]
    computing: set[int] = set()
    chosen = []
    for choice in bounded(line, 0, 6, lambda one: one.arrival % 2 in computing):
        chosen.append(choice.request.arrival)
        computing.add(choice.request.arrival % 2)
    assert chosen == [0, 1]


def test_who_can_be_overtaken_no_further_goes_first_although_it_defers() -> None:
    """The one that would be overtaken too much is chosen before the candidate, which then may not overtake the next."""
    line = [Queued(1, 20, overtaken=90), Queued(2, 20, overtaken=85), Queued(3, 20, 9), Queued(4, 20, 16)]
    chosen = bounded(line[::-1], 100, 4, lambda one: one.arrival <= 2)
    assert [(choice.request.arrival, choice.least) for choice in chosen] == [(4, 16), (1, 0), (3, 9)]


def test_those_chosen_before_count() -> None:
    """Two that could each overtake the oldest may not both."""
    line = [Queued(1, 50), Queued(2, 30), Queued(3, 30)]
    chosen = bounded(line[::-1], 50, 3, nobody)
    assert [choice.request.arrival for choice in chosen] == [3, 1, 2]


def test_one_that_came_back_does_not_hide_those_behind_it() -> None:
    """The oldest was running while the second was overtaken: whoever may no longer overtake the second overtakes neither."""
    line = [Queued(1, 20, overtaken=0), Queued(2, 20, overtaken=95), Queued(3, 20, 10)]
    chosen = bounded(line[::-1], 100, 3, nobody)
    assert [choice.request.arrival for choice in chosen] == [1, 2, 3]


def test_who_goes_first_may_not_overtake_a_higher_class_either() -> None:
    """A candidate would overtake one too much that would overtake one of a higher class too much, which goes first."""
    highest, middle = Queued(1, 50, priority=2), Queued(2, 40, priority=1, overtaken=25)
    small = Queued(3, 10, priority=0)
    chosen = bounded([small], 30, 3, nobody)
    assert [choice.request for choice in chosen] == [small]
    chosen = bounded([small, highest, middle], 30, 3, lambda one: one is not small)
    assert [(choice.request, choice.least) for choice in chosen] == [(highest, 0), (middle, 0), (small, 0)]


def test_higher_classes_chosen_before_do_not_count() -> None:
    """What a lower class can still bear is not used up by a higher one."""
    line = [Queued(3, 90, priority=1), Queued(2, 20), Queued(1, 20)]
    assert [choice.request.arrival for choice in bounded(line, 30, 3, nobody)] == [3, 2, 1]


def test_a_limit_below_every_request_means_order_of_arrival() -> None:
    """Where nobody may overtake anybody, each is chosen before those behind it."""
    line = [Queued(at, 20, at) for at in range(8)]
    chosen = bounded(line[::-1], 1, 8, nobody)
    assert [(choice.request.arrival, choice.least) for choice in chosen] == [(at, 0) for at in range(8)]


def test_a_higher_class_is_not_bounded_by_a_lower_one() -> None:
    """Higher classes go first and count for nobody below; a lower one passes a higher one that defers, within the limit."""
    low, high = Queued(1, 50, overtaken=0), Queued(2, 50, priority=1)
    assert [choice.request for choice in bounded([high, low], 10, 2, nobody)] == [high, low]
    admitted(high, 0, [low])
    assert low.overtaken == 0
    deferring, later = Queued(3, 50, priority=1, overtaken=60), Queued(4, 30)
    first = next(bounded([deferring, later], 100, 2, lambda one: one is deferring))
    assert (first.request, first.least) == (later, 0)
    admitted(later, 0, [deferring])
    assert deferring.overtaken == 90
    chosen = bounded([deferring, Queued(5, 30)], 100, 1, lambda one: one is deferring)
    assert [choice.request for choice in chosen] == [deferring]


def test_everybody_deferring_chooses_nobody() -> None:
    """Without a candidate that goes ahead nobody is overtaken, so nobody is forced."""
    assert list(bounded([Queued(1, overtaken=5), Queued(2)], 5, 2, everybody)) == []


def test_a_lowered_limit_stops_all_overtaking() -> None:
    """Who has been overtaken by more than a new limit allows is overtaken by nothing more."""
    line = [Queued(1, overtaken=500), Queued(2, 10, 9)]
    assert [choice.request.arrival for choice in bounded(line[::-1], 100, 2, nobody)] == [1, 2]
