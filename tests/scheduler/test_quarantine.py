"""Finding the culprit of a crash, without scheduler or worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.messages import Finish, Sampling, Sequence
from sgl_actors.actors.scheduler.quarantine import STRIKES, Quarantine


def generations(count: int) -> list[Generation]:
    """Requests that were to be computed up to their third token."""
    made = [
        Generation(Sequence(f"r{n}", [1, 2, 3], 4, Sampling(0)), None, n, [1, 2, 3]) for n in range(count)
    ]
    for generation in made:
        generation.planned = 3
    return made


def stand(quarantine: Quarantine, group: list[Generation]) -> None:
    """All of the group are computed as far as they were to be."""
    for generation in group:
        generation.computed = 3
        quarantine.stepped(generation)


@given(
    st.integers(1, 64).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1))))
)
def test_exactly_the_culprits_are_condemned(case: tuple[int, set[int]]) -> None:
    """Whoever crashes the worker ends, nobody else does, and a single culprit takes at most log2(n) + 2 crashes."""
    count, guilty = case
    made = generations(count)
    culprits = {made[index] for index in guilty}
    quarantine = Quarantine()
    condemned: list[Generation] = []
    crashes = int(bool(culprits))
    if culprits:
        condemned += quarantine.crashed(made)
        if condemned:
            quarantine.forget(condemned[-1])
    while quarantine.trial:
        group = list(quarantine.trial)
        if culprits & set(group):
            crashes += 1
            found = quarantine.crashed(group)
            condemned += found
            for generation in found:
                assert group == [generation], "condemned for a crash in company"
                quarantine.forget(generation)
        else:
            stand(quarantine, group)
    assert set(condemned) == culprits
    assert len(condemned) == len(culprits)
    assert len(quarantine) == 0
    if len(culprits) == 1:
        assert crashes <= (count - 1).bit_length() + STRIKES


def test_first_half_is_on_trial_first() -> None:
    """The second half waits until each of the first has stood its trial or ended."""
    made = generations(4)
    quarantine = Quarantine()
    assert quarantine.crashed(made) == []
    assert quarantine.trial == made[:2]
    stand(quarantine, made[:1])
    assert quarantine.trial == made[1:2]
    quarantine.forget(made[1])
    assert quarantine.trial == made[2:]
    assert not quarantine.on_trial(made[0])


def test_a_step_that_falls_short_of_the_crash_clears_nobody() -> None:
    """A chunk of a prompt before the one that crashed proves nothing."""
    (one,) = generations(1)
    quarantine = Quarantine()
    quarantine.crashed([one])
    one.computed = 2
    quarantine.stepped(one)
    assert quarantine.on_trial(one)
    one.computed = 3
    quarantine.stepped(one)
    assert not quarantine.on_trial(one)


def test_a_crash_of_part_of_a_group_leaves_the_rest_for_later() -> None:
    """Who was not in the step that crashed waits behind those who were."""
    made = generations(4)
    quarantine = Quarantine()
    quarantine.crashed(made)
    quarantine.crashed(made[:1])
    order = []
    while quarantine.trial:
        order.append(list(quarantine.trial))
        stand(quarantine, order[-1])
    assert order == [made[:1], made[1:2], made[2:]]


def test_nobody_ran_alone_beside_one_that_has_ended() -> None:
    """The other one may have been the culprit: such a crash counts against nobody, but leads to a trial."""
    one, other = generations(2)
    other.finish = Finish("abort")
    quarantine = Quarantine()
    for _ in range(5):
        assert quarantine.crashed([one, other]) == []
        assert quarantine.trial == [one]
    assert quarantine.crashed([one]) == []
    assert quarantine.crashed([one]) == [one]


def test_a_crash_without_suspects_changes_nothing() -> None:
    """An idle worker that dies incriminates nobody."""
    quarantine = Quarantine()
    assert quarantine.crashed([]) == []
    assert quarantine.trial == []
