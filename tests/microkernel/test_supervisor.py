"""The supervisor's decisions, as a state machine without processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.microkernel.supervisor import Begin, ChildSpec, Effect, End, Supervisor


def supervisor(
    strategy: str = "one_for_one", *, intensity: int = 3, restart: str = "permanent"
) -> Supervisor:
    specs = [ChildSpec(name, "m:C", name, restart) for name in "abc"]  # type: ignore[arg-type]
    made = Supervisor(specs, strategy, intensity, 10.0)  # type: ignore[arg-type]
    assert made.begin() == [Begin("a"), Begin("b"), Begin("c")]
    for name in "abc":
        assert made.started(name) == []
    assert made.ready
    return made


def test_one_for_one() -> None:
    """Only the child that failed is restarted."""
    assert supervisor().exited("b", "crash", 0.0) == [Begin("b")]


def test_rest_for_one() -> None:
    """Those started after the failed one are ended in reverse order, then all start again in order."""
    made = supervisor("rest_for_one")
    assert made.exited("a", "crash", 0.0) == [End("c"), End("b")]
    assert made.exited("c", "stopped", 0.1) == []
    assert made.exited("b", "stopped", 0.2) == [Begin("a"), Begin("b"), Begin("c")]


def test_one_for_all() -> None:
    """All are ended and started again."""
    made = supervisor("one_for_all")
    assert made.exited("b", "crash", 0.0) == [End("c"), End("a")]
    made.exited("a", "stopped", 0.1)
    assert made.exited("c", "stopped", 0.1) == [Begin("a"), Begin("b"), Begin("c")]


def test_intensity_escalates_with_the_first_cause() -> None:
    """More than `intensity` restarts in the period end everything, in reverse order; the first cause is kept."""
    made = supervisor(intensity=2)
    for attempt in range(2):
        assert made.exited("a", f"crash {attempt}", float(attempt)) == [Begin("a")]
        made.started("a")
    assert made.exited("a", "crash 2", 2.0) == [End("c")]
    assert made.exited("c", "stopped", 2.1) == [End("b")]
    assert made.exited("b", "stopped", 2.2) == []
    assert made.done
    assert made.failed.startswith("a: crash 0")


def test_slow_failures_do_not_escalate() -> None:
    """Restarts outside the period do not count."""
    made = supervisor(intensity=1)
    for attempt in range(20):
        assert made.exited("a", "crash", attempt * 11.0) == [Begin("a")]
        made.started("a")


def test_fatal_escalates_at_once() -> None:
    """What a restart cannot mend is not tried again."""
    made = supervisor()
    assert made.exited("a", "no such file", 0.0, fatal=True) == [End("c")]
    assert made.failed == "no such file"


@pytest.mark.parametrize(
    ("restart", "normal", "again"),
    [
        ("permanent", True, True),
        ("transient", True, False),
        ("transient", False, True),
        ("temporary", False, False),
    ],
)
def test_restart_kinds(restart: str, *, normal: bool, again: bool) -> None:
    """A permanent child always comes back, a transient one after a fault, a temporary one never."""
    effects = supervisor(restart=restart).exited("a", "gone", 0.0, normal=normal)
    assert effects == ([Begin("a")] if again else [])


def test_one_cause_of_several_exits() -> None:
    """Children that ended together, in one process, are one failure."""
    made = supervisor(intensity=1)
    assert made.exited("a", "killed", 0.0) == [Begin("a")]
    assert made.exited("b", "killed", 0.0, same_cause=True) == [Begin("b")]
    assert made.exited("c", "killed", 0.0, same_cause=True) == [Begin("c")]
    assert not made.failed


def test_ready_without_what_has_finished() -> None:
    """A transient child that has ended normally does not keep the others from being ready."""
    made = supervisor(restart="transient")
    made.exited("b", "finished", 0.0, normal=True)
    assert made.ready


def test_operator_restart() -> None:
    """An operator's restart ends one child, starts it again and is no failure."""
    made = supervisor(intensity=0)
    assert made.restart("b") == [End("b")]
    assert made.exited("b", "stopped", 0.0, normal=True) == [Begin("b")]
    made.started("b")
    assert made.ready
    assert made.children["b"].restarts == 1


def test_shutdown_in_reverse() -> None:
    """Children end one after the other, the youngest first."""
    made = supervisor()
    assert made.shutdown() == [End("c")]
    assert made.exited("c", "stopped", 0.0) == [End("b")]
    assert made.exited("b", "stopped", 0.0) == [End("a")]
    assert made.exited("a", "stopped", 0.0) == []
    assert made.done


@given(
    st.sampled_from(["one_for_one", "rest_for_one", "one_for_all"]),
    st.lists(st.tuples(st.sampled_from(["crash", "restart", "settle"]), st.sampled_from("abc")), max_size=40),
)
def test_never_stuck(strategy: str, events: list[tuple[str, str]]) -> None:
    """Whatever fails in whatever order, once effects have happened all children run again, or all have ended."""
    made = supervisor(strategy, intensity=5)
    queue: list[Effect] = []

    def happen(effect: Effect) -> None:
        child = made.children[effect.name]
        if isinstance(effect, Begin):
            assert child.state in ("starting", "stopping")
            queue.extend(made.started(effect.name))
        else:
            assert child.state == "stopping"
            queue.extend(made.exited(effect.name, "stopped", 0.0, normal=True))

    for what, name in events:
        child = made.children[name]
        if what == "settle":
            while queue:
                happen(queue.pop(0))
        elif what == "crash" and child.state in ("starting", "running"):
            queue = [e for e in queue if not (isinstance(e, Begin) and e.name == name)]
            queue.extend(made.exited(name, "crash", 0.0))
        elif what == "restart":
            effects = made.restart(name)
            if effects and isinstance(effects[0], End):
                queue = [e for e in queue if not (isinstance(e, Begin) and e.name == name)]
            queue.extend(effects)
    while queue:
        happen(queue.pop(0))
    assert made.done if made.closing else made.ready


def in_groups(**groups: str) -> Supervisor:
    """Children by name, with their groups; all run, and two failures are borne."""
    specs = [ChildSpec(name, "m:C", name, group=group) for name, group in groups.items()]
    supervisor = Supervisor(specs, intensity=2, period=30.0)
    supervisor.begin()
    for name in groups:
        supervisor.started(name)
    return supervisor


def fail(supervisor: Supervisor, name: str, now: float, *, fatal: bool = False) -> list[Effect]:
    """A child ends by itself; if it is started anew, it comes up."""
    effects = supervisor.exited(name, "broken", now, fatal=fatal)
    for effect in effects:
        if isinstance(effect, Begin):
            supervisor.started(effect.name)
    return effects


def test_a_group_that_is_not_essential_ends_alone() -> None:
    """Its failures are counted for it alone; when they are too many, or one is fatal, its children are ended and forgotten, and the others run on."""
    for fatal in (False, True):
        supervisor = in_groups(a="", b="@b", c="@b", d="@d")
        for number in range(1 if fatal else 3):
            effects = fail(supervisor, "b", float(number), fatal=fatal)
        assert effects == [End("c")]
        assert supervisor.given_up.keys() == {"@b"}
        supervisor.exited("c", "stopped", 3.0, normal=True)
        assert list(supervisor.children) == ["a", "d"]
        assert not supervisor.failed
        assert supervisor.ready
        fail(supervisor, "a", 4.0)
        assert not supervisor.failed
        for number in range(2):
            fail(supervisor, "a", 4.0 + number)
        assert supervisor.failed.startswith("a: broken")


def test_a_strategy_goes_by_group() -> None:
    """One for all is all of the group."""
    supervisor = in_groups(a="", b="@b", c="@b", d="")
    supervisor.strategy = "one_for_all"
    assert fail(supervisor, "b", 0.0) == [End("c")]


def test_what_fails_soon_after_a_change_is_as_it_was_before() -> None:
    """The first failure of a child on probation takes its change back, fatal or not; later ones are its own."""
    for fatal in (False, True):
        supervisor = in_groups(a="")
        before = supervisor.children["a"].spec
        supervisor.changed("a", ChildSpec("a", "m:New", "a"), 0.0)
        assert fail(supervisor, "a", 5.0, fatal=fatal) == [Begin("a")]
        assert supervisor.children["a"].spec == before
        supervisor.changed("a", ChildSpec("a", "m:New", "a"), 10.0)
        fail(supervisor, "a", 100.0)
        assert supervisor.children["a"].spec.path == "m:New"


def test_before_anything_escalates_changes_are_taken_back() -> None:
    """Where others fail because of a change, it is the change that goes; without one, the node does."""
    supervisor = in_groups(a="", b="")
    before = supervisor.children["b"].spec
    supervisor.changed("b", ChildSpec("b", "m:New", "b"), 0.0)
    for number in range(3):
        effects = fail(supervisor, "a", float(number))
    assert effects == [End("b")]
    assert supervisor.children["b"].spec == before
    assert supervisor.exited("b", "stopped", 3.0, normal=True) == [Begin("a"), Begin("b")]
    for name in ("a", "b"):
        supervisor.started(name)
    for number in range(3):
        fail(supervisor, "a", 4.0 + number)
    assert supervisor.failed
