"""When an API may be asked, and when again: the plain state machines, by a clock of the tests."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.api.limits import MINUTE, Limits, Place, Window
from sgl_actors.actors.api.tries import FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WISH, Throttle, Tries, wish_of
from sgl_actors.errors import (
    BrokenAnswer,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    QuotaExceeded,
    Refused,
    SglActorsError,
    Unauthorized,
)
from tests.api.fake_vendor import replaced

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "pass", "pause", "give up"]), st.integers(0, 3), st.integers(0, 40)
    ),
    max_size=120,
)


def run(limits: Limits, operations: list[tuple[str, int, int]]) -> tuple[list[tuple[float, Place]], float]:
    """Do what they say; who was let in when, and the time at the end."""
    now, admitted, waiting, running = 0.0, [], deque[Place](), deque[Place]()

    def admit() -> None:
        for place in limits.admit(now):
            admitted.append((now, place))
            waiting.remove(place)
            running.append(place)

    for kind, program, number in operations:
        if kind == "enter":
            waiting.append(limits.enter(f"p{program}", number, now))
        elif kind == "leave" and running:
            limits.leave(running.popleft(), now, number)
        elif kind == "give up" and waiting:
            limits.leave(waiting.pop(), now)
        elif kind == "pause":
            limits.pause(now + number)
        elif kind == "pass":
            now += number
        before = len(admitted)
        admit()
        assert limits.waiting == len(waiting)
        assert limits.running == len(running) <= limits.concurrency
        assert now >= limits.paused or len(admitted) == before
    for _ in range(10_000):  # all the others get in, if time passes and places are given back
        if not waiting:
            break
        while running:
            limits.leave(running.popleft(), now)
        wakes = limits.wakes(now)
        assert wakes is not None
        if wakes > now:
            assert limits.admit((now + wakes) / 2) == []
        now = wakes
        count = len(admitted)
        admit()
        assert len(admitted) > count
    assert not waiting
    return admitted, now


@given(OPERATIONS, st.integers(1, 4), st.integers(0, 5), st.sampled_from([0, 30, 100]))
def test_limits_hold_and_everybody_gets_in(
    operations: list[tuple[str, int, int]], concurrency: int, requests: int, tokens: int
) -> None:
    """At no time more run than may, in no minute more begin than may, and `wakes` says exactly when the next one gets in."""
    limits = Limits(concurrency, 1000, requests, tokens)
    admitted, _ = run(limits, operations)
    times = [time for time, _ in admitted]
    if requests:
        assert all(late - early >= MINUTE for early, late in zip(times, times[requests:], strict=False))


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 60)), max_size=40))
def test_a_window_is_never_over_its_limit(uses: list[tuple[int, int]]) -> None:
    """Whatever is used when it opens, any minute has no more than the limit, but for one use that is more by itself."""
    window, now, taken = Window(50), 0.0, list[tuple[float, int]]()
    for gap, amount in uses:
        now = window.opens(amount, now + gap)
        window.take(amount, now)
        taken.append((now, amount))
    for start, _ in taken:
        within = [amount for time, amount in taken if start <= time < start + MINUTE]
        assert sum(within) <= 50 or len([amount for amount in within if amount]) == 1


def test_a_correction_makes_or_takes_room() -> None:
    """What a request really used counts from when it began; what is long over counts no more."""
    window = Window(100)
    use = window.take(80, 0.0)
    assert window.opens(50, 1.0) == MINUTE
    window.correct(use, 20, 1.0)
    assert window.opens(50, 1.0) == 1.0
    window.correct(use, 100, 2.0)
    assert window.opens(1, 2.0) == MINUTE
    window.correct(use, 500, MINUTE + 1)
    assert window.used == 0


def test_programs_take_turns() -> None:
    """A program with many requests does not keep out one with few."""
    limits = Limits(1, 100)
    for _ in range(6):
        limits.enter("many", 0, 0.0)
    for _ in range(2):
        limits.enter("few", 0, 0.0)
    order = []
    for _ in range(8):
        (place,) = limits.admit(0.0)
        order.append(place.program)
        limits.leave(place, 0.0)
    assert order == ["many", "few", "many", "few", "many", "many", "many", "many"]


def test_nobody_overtakes_a_large_request() -> None:
    """A place that needs much waits for its room, and those behind it wait for it."""
    limits = Limits(9, 9, tokens=100)
    limits.enter("a", 60, 0.0)
    limits.enter("b", 90, 0.0)
    limits.enter("c", 1, 0.0)
    assert [place.program for place in limits.admit(0.0)] == ["a"]
    assert limits.wakes(0.0) == MINUTE
    assert [place.program for place in limits.admit(MINUTE)] == ["b", "c"]


def test_a_full_line_refuses() -> None:
    """What can neither begin nor wait is refused, what was let in once is not; without a queue one still may begin."""
    limits = Limits(1, 1)
    first = limits.enter("a", 0, 0.0)
    limits.admit(0.0)
    limits.enter("a", 0, 0.0)
    with pytest.raises(Overloaded, match="1 requests wait"):
        limits.enter("b", 0, 0.0)
    limits.enter("b", 0, 0.0, again=True)
    limits.leave(first, 0.0)
    assert limits.waiting == 2
    none = Limits(1, 0)
    none.enter("a", 0, 0.0)
    none.admit(0.0)
    with pytest.raises(Overloaded):
        none.enter("a", 0, 0.0)


def test_a_pause_is_for_all() -> None:
    """While it lasts nobody is let in; a shorter one does not end a longer one."""
    limits = Limits(9, 9)
    limits.pause(30.0)
    limits.pause(10.0)
    limits.enter("a", 0, 1.0)
    limits.enter("b", 0, 1.0)
    assert limits.admit(29.9) == []
    assert limits.wakes(1.0) == 30.0
    assert len(limits.admit(30.0)) == 2


def pauses(tries: Tries, error: SglActorsError, now: float = 0.0) -> list[float]:
    """Seconds before each next try, until there is none."""
    found: list[float] = []

    def ask() -> None:
        while True:
            found.append(tries.again(error, now))

    with pytest.raises(type(error)) as raised:
        ask()
    assert raised.value is error
    return found


def test_pauses_double_up_to_a_limit_with_full_jitter() -> None:
    """Chance picks from 0 to a most that doubles from half a second to thirty."""
    most = pauses(Tries(9, 1e9, Throttle(1e9), lambda: 1.0), NotReady("down"))
    assert most == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert pauses(Tries(3, 1e9, Throttle(1e9), lambda: 0.0), NotReady("down")) == [0, 0, 0]
    assert all(two == 2 * one for one, two in pairwise(most[:6]))
    assert most[0] == FIRST_PAUSE
    assert max(most) == LONGEST_PAUSE


@pytest.mark.parametrize("error", [InvalidRequest, Unauthorized, QuotaExceeded, Refused])
def test_what_does_not_help_is_not_tried(error: type[SglActorsError]) -> None:
    """Errors that asking again does not mend are raised at once, and drain nothing."""
    throttle = Throttle(10)
    assert pauses(Tries(5, 1e9, throttle, lambda: 1.0), error("no")) == []
    assert throttle.level == 10


@pytest.mark.parametrize("error", [NotReady, Overloaded, DeadlineExceeded, BrokenAnswer])
def test_what_may_help_is_tried(error: type[SglActorsError]) -> None:
    """Errors that may be over the next time are followed by as many tries as are allowed."""
    assert len(pauses(Tries(5, 1e9, Throttle(100), lambda: 0.5), error("later"))) == 5


def test_a_provider_s_wish_is_the_least() -> None:
    """The pause is what it said, or what chance says if that is more; such refusals do not drain the throttle."""
    throttle = Throttle(4)
    error = replaced(Overloaded("slow down"), 3.0)
    assert pauses(Tries(5, 1e9, throttle, lambda: 1.0), error) == [3, 3, 3, 4, 8]
    assert throttle.level == 4
    assert wish_of(replaced(Overloaded("never"), 1e12)) == LONGEST_WISH
    assert wish_of(replaced(Overloaded("no sense"), -5)) == 0


def test_nothing_is_tried_behind_the_deadline() -> None:
    """A pause that would reach it is not begun: the error comes at once."""
    tries = Tries(9, 10.0, Throttle(100), lambda: 1.0)
    assert pauses(tries, NotReady("down"), now=8.0) == [0.5, 1]
    assert tries.retries == 2
    assert pauses(Tries(9, 10.0, Throttle(9), lambda: 0), replaced(Overloaded("later"), 60.0)) == []


def test_an_outage_does_not_multiply_the_load() -> None:
    """However many requests fail, their retries together are half of the throttle's capacity, until some succeed."""
    throttle = Throttle(20)
    retries = sum(len(pauses(Tries(5, 1e9, throttle, lambda: 0), NotReady("down"))) for _ in range(500))
    assert retries == 8
    for _ in range(4):
        throttle.succeeded()
    assert not throttle.open
    for _ in range(40):
        throttle.succeeded()
    assert throttle.level == 20
    assert throttle.open


def test_a_fifth_of_faults_is_borne() -> None:
    """With every fifth try failing no retry is ever refused, wherever the faults begin."""
    for start in range(5):
        throttle = Throttle(10)
        for number in range(400):
            if (number + start) % 5:
                throttle.succeeded()
            else:
                throttle.failed()
                assert throttle.open
