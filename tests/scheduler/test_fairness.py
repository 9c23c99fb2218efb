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
GRACES = (0, 1, 10, 50)
DECODED = (0, 1, 5, 40)
SENIOR = (0, 0, 0, 3, 20, 100)


def nobody(_request: Queued) -> bool:
    """Nobody waits for another's prefix."""
    return False


def everybody(_request: Queued) -> bool:
    """All wait for another's prefix."""
    return True


class Queue:
    """A waiting line, a cache that grants from the front, and the books."""

    def __init__(self, policy: str, limit: int, grace: int) -> None:
        self.policy = policy_named(policy)
        self.limit = limit
        self.grace = grace
        self.waiting: list[Queued] = []
        self.running: list[Queued] = []
        self.admissions: list[Queued] = []
        self.overtaken: Counter[int] = Counter()
        self.processed = 0
        self.arrivals = 0
        self.asked: tuple[list[Choice[Queued]], list[Queued]] | None = None

    def arrive(self, length: int, hint: int, priority: int = 0, decoded: int = 1, senior: int = 0) -> Queued:
        """After `decoded` more tokens; its program began `senior` tokens before."""
        self.arrivals += 1
        self.processed += decoded
        request = Queued(
            self.arrivals, length, min(hint, length - 1), priority, self.processed, bytes(8 * length)
        )
        request.place = max(0, self.processed - senior)
        self.waiting.append(request)
        return request

    def ask(self, room: int, deferred: Callable[[Queued], bool]) -> None:
        """Choose; the answer may come later."""
        ordered = self.policy.order(self.waiting, self.processed)
        choices = list(bounded(ordered, self.limit, room, deferred, grace=self.grace))
        self.asked = (choices, list(self.waiting))

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
                if request.place - one.place > self.grace and request.priority <= one.priority:
                    self.overtaken[one.arrival] += request.length - found
            admitted(request, found, line, grace=self.grace)

    def retract(self, request: Queued, generated: int) -> None:
        self.running.remove(request)
        request.length += generated
        self.waiting.append(request)


class History(RuleBasedStateMachine):
    """An adversary chooses arrivals, places, hints, what the cache really has, room, what fits, who defers, and who comes back."""

    @initialize(
        policy=st.sampled_from(POLICIES), limit=st.sampled_from(LIMITS), grace=st.sampled_from(GRACES)
    )
    def begin(self, policy: str, limit: int, grace: int) -> None:
        self.queue = Queue(policy, limit, grace)

    @rule(
        requests=st.lists(
            st.tuples(
                st.sampled_from(LENGTHS),
                st.integers(0, 60),
                st.sampled_from(RANKS),
                st.sampled_from(DECODED),
                st.sampled_from(SENIOR),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def arrive(self, requests: list[tuple[int, int, int, int, int]]) -> None:
        """Also while a round is out, and then also in front of those chosen."""
        for request in requests:
            self.queue.arrive(*request)

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
        generated = data.draw(st.integers(0, 20))
        self.queue.retract(data.draw(st.sampled_from(self.queue.running)), generated)

    @invariant()
    def nobody_is_overtaken_by_more_than_the_limit(self) -> None:
        for request in self.queue.waiting + self.queue.running:
            overtaken = self.queue.overtaken[request.arrival]
            assert request.overtaken == overtaken
            assert overtaken <= self.queue.limit or not self.queue.limit

    def teardown(self) -> None:
        """With nothing more to come and nobody deferring, every round admits one, also if it finds nothing in the cache."""
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
TestHistory.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def rounds_until_admitted(
    queue: Queue, victim: Queued, newcomers: list[tuple[int, int, int]], deferring: set[int], most: int
) -> int:
    """Rounds of one admission, a newcomer (length, hint, seniority) before each, until `victim` is admitted; at most `most`.

    It defers in the rounds `deferring`.
    """
    for count in range(1, most + 1):
        length, hint, senior = newcomers[count % len(newcomers)]
        queue.arrive(length, hint, senior=senior)
        queue.ask(1, lambda request: request is victim and count in deferring)  # noqa: B023  asked at once
        queue.answer(lambda request: request.hint, 1)
        if victim in queue.running:
            return count
    return most + 1


@pytest.mark.parametrize("policy", POLICIES)
@given(
    limit=st.sampled_from([limit for limit in LIMITS if limit]),
    grace=st.sampled_from(GRACES),
    before=st.lists(st.sampled_from(LENGTHS), max_size=4),
    newcomers=st.lists(
        st.sampled_from(
            [(2, 1, 0), (20, 19, 0), (60, 50, 0), (60, 0, 0), (1, 0, 0), (2, 1, 30), (60, 59, 100)]
        ),
        min_size=1,
        max_size=4,
    ),
    deferring=st.sets(st.integers(1, 100), max_size=30),
)
def test_nobody_starves_however_many_come(
    policy: str,
    limit: int,
    grace: int,
    before: list[int],
    newcomers: list[tuple[int, int, int]],
    deferring: set[int],
) -> None:
    """A cold request waits for those before it, those no later, at most `limit` tokens of later ones, and as long as it defers."""
    queue = Queue(policy, limit, grace)
    for length in before:
        queue.arrive(length, 0)
    victim = queue.arrive(60, 0)
    no_later = grace + max(senior for _, _, senior in newcomers)
    most = len(before) + no_later + limit + len(deferring) + 1
    assert rounds_until_admitted(queue, victim, newcomers, deferring, most) <= most


@given(
    limit=st.sampled_from(LIMITS),
    grace=st.sampled_from(GRACES),
    room=st.integers(1, 8),
    requests=st.lists(
        st.tuples(st.sampled_from(LENGTHS), st.sampled_from(RANKS), st.integers(0, 100), st.integers(0, 100)),
        min_size=1,
        max_size=8,
    ),
    data=st.data(),
)
def test_there_is_no_standstill_while_nobody_computes(
    limit: int, grace: int, room: int, requests: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    """All room is used if nobody defers; if who is chosen makes others defer, at least one is chosen."""
    line = [
        Queued(at, length, 0, rank, overtaken=overtaken, place=place)
        for at, (length, rank, overtaken, place) in enumerate(requests)
    ]
    ordered = data.draw(st.permutations(line))
    assert len(list(bounded(ordered, limit, room, nobody, grace=grace))) == min(room, len(line))
    computing: set[int] = set()
    for choice in bounded(ordered, limit, room, lambda _request: bool(computing), grace=grace):
        computing.add(choice.request.arrival)
    assert len(computing) == 1


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight"])
def test_without_a_limit_a_cold_request_starves(policy: str) -> None:
    """What the limit is for: as long as hot requests keep coming, a cold one is never admitted; with a limit it is."""
    for limit, starves in ((0, True), (100, False)):
        queue = Queue(policy, limit, 0)
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
    grace=st.sampled_from(GRACES),
    arrivals=st.lists(
        st.tuples(st.sampled_from(LENGTHS), st.integers(0, 60), st.sampled_from(RANKS)), max_size=20
    ),
    fits=st.lists(st.integers(0, 4), max_size=20),
)
def test_first_come_admits_each_class_in_the_order_of_arrival(
    limit: int, grace: int, arrivals: list[tuple[int, int, int]], fits: list[int]
) -> None:
    """Without programs fcfs overtakes nobody, whatever hints and grants say, so no lease is refused and nothing is counted."""
    queue = Queue("fcfs", limit, grace)
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
    grace=st.sampled_from(GRACES),
    room=st.integers(0, 8),
    requests=st.lists(
        st.tuples(
            st.sampled_from(LENGTHS),
            st.integers(0, 60),
            st.sampled_from(RANKS),
            st.sampled_from((0, 0.3, 0.8, 1, 1.5)),
            st.sampled_from((0, 1, 2, 5, 9, 10, 11, 12, 40, 60, 62, 120)),
        ),
        min_size=2,
        max_size=8,
    ),
    data=st.data(),
)
def test_choosing_is_what_the_statement_gives(
    limit: int,
    grace: int,
    room: int,
    requests: list[tuple[int, int, int, float, int]],
    data: st.DataObject,
) -> None:
    """Searching in sums chooses as a look at each who would be overtaken, by each chosen before, does."""
    line = [
        Queued(at, length, min(hint, length - 1), rank, overtaken=int(limit * share), place=place)
        for at, (length, hint, rank, share, place) in enumerate(requests)
    ]
    ordered = data.draw(st.permutations(line))
    deferring = data.draw(st.sets(st.integers(0, len(line)), max_size=3))
    chosen = list(bounded(ordered, limit, room, lambda one: one.arrival in deferring, grace=grace))
    expected = naive(ordered, limit, room, deferring, grace)
    assert [(choice.request, choice.least) for choice in chosen] == expected


def naive(
    ordered: list[Queued], limit: int, room: int, deferring: set[int], grace: int
) -> list[tuple[Queued, int]]:
    """`bounded`, as the statement reads."""
    chosen: list[tuple[Queued, int]] = []
    left = {one.arrival: one for one in ordered}

    def overtakes(one: Queued, other: Queued) -> bool:
        return one.place - other.place > grace and one.priority <= other.priority

    def behind(request: Queued) -> list[Queued]:
        return [one for one in left.values() if overtakes(request, one)]

    def too_much(request: Queued) -> list[Queued]:
        found = []
        for one in behind(request):
            passed = [other.uncached for other, _ in chosen if overtakes(other, one)]
            if one.overtaken + sum(passed) + request.uncached > limit:
                found.append(one)
        return found

    def entitled(request: Queued) -> Queued:
        while limit and (found := too_much(request)):
            request = min(found, key=lambda one: (-one.priority, one.place, one.arrival))
        return request

    for candidate in ordered:
        while candidate.arrival in left and len(chosen) < room:
            request = entitled(candidate)
            if {candidate.arrival, request.arrival} & deferring:
                break
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


def test_who_may_not_overtake_one_that_defers_is_left_out() -> None:
    """It is not forced to compute what it could find in the cache soon; those who may overtake it, or do not, go ahead."""
    line = [Queued(0, 20), Queued(1, 20, overtaken=90), Queued(2, 20, 9), Queued(3, 20, 16)]
    for deferring, expected in (({1}, [(3, 16), (0, 0)]), (set(), [(3, 16), (1, 0), (2, 9), (0, 0)])):
        chosen = bounded(line[::-1], 100, 4, lambda one: one.arrival in deferring)  # noqa: B023  asked at once
        assert [(choice.request.arrival, choice.least) for choice in chosen] == expected


def test_a_place_behind_by_no_more_than_the_grace_makes_no_difference() -> None:
    """Who came hardly later than one that may be overtaken no further goes before it, and is not counted."""
    old, new = Queued(1, place=0, overtaken=100), Queued(2, hint=9, place=10)
    chosen = bounded([new, old], 100, 2, nobody, grace=10)
    assert [(choice.request, choice.least) for choice in chosen] == [(new, 0), (old, 0)]
    assert [choice.request for choice in bounded([new, old], 100, 2, nobody, grace=9)] == [old, new]
    admitted(new, 0, [old], grace=10)
    assert old.overtaken == 100
    admitted(new, 0, [old], grace=9)
    assert old.overtaken == 110


def test_who_takes_a_place_in_front_may_be_overtaken_as_much_as_anyone() -> None:
    """A program's call in front of one that may be overtaken no further does not hold that one up, even if it defers."""
    called, old, new = Queued(9, 20, place=0), Queued(1, 50, 5, place=50, overtaken=100), Queued(2, 20, 5)
    new.place = 100
    for deferring in (nobody, lambda one: one is called):
        chosen = bounded([new, old, called], 100, 2, deferring)
        assert [(choice.request, choice.least) for choice in chosen] == [(old, 5), (new, 5)]


def test_those_chosen_before_count() -> None:
    """Two that could each overtake the oldest may not both."""
    line = [Queued(1, 50), Queued(2, 30), Queued(3, 30)]
    chosen = bounded(line[::-1], 50, 3, nobody)
    assert [choice.request.arrival for choice in chosen] == [3, 1, 2]


def test_one_that_came_back_does_not_hide_those_behind_it() -> None:
    """It was running while the second was overtaken: the second goes before whoever may overtake only the first."""
    line = [Queued(1, 20, overtaken=0), Queued(2, 20, overtaken=95), Queued(3, 20, 10)]
    chosen = bounded(line[::-1], 100, 3, nobody)
    assert [(choice.request.arrival, choice.least) for choice in chosen] == [(2, 0), (3, 10), (1, 0)]


def test_who_goes_first_may_not_overtake_a_higher_class_either() -> None:
    """A candidate would overtake one too much that would overtake one of a higher class too much, which goes first or stops both."""
    highest, middle = Queued(1, 50, priority=2), Queued(2, 40, priority=1, overtaken=25)
    small = Queued(3, 10, priority=0)
    chosen = bounded([small, highest, middle], 30, 3, nobody)
    assert [choice.request for choice in chosen] == [highest, middle, small]
    assert not list(bounded([small, highest, middle], 30, 3, lambda one: one is highest))


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
    lowest = Queued(5, 30)
    assert not list(bounded([deferring, lowest], 100, 2, lambda one: one is deferring))
    assert [choice.request for choice in bounded([lowest, deferring], 100, 2, nobody)] == [deferring, lowest]


def test_everybody_deferring_chooses_nobody() -> None:
    """Nobody is forced."""
    assert list(bounded([Queued(1, overtaken=5), Queued(2)], 5, 2, everybody)) == []


def test_a_lowered_limit_stops_all_overtaking() -> None:
    """Who has been overtaken by more than a new limit allows is overtaken by nothing more."""
    line = [Queued(1, overtaken=500), Queued(2, 10, 9)]
    assert [choice.request.arrival for choice in bounded(line[::-1], 100, 2, nobody)] == [1, 2]
