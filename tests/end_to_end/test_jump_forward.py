"""Jump-forward changes how many steps an output takes, never the output: over constraints of every kind (`constrained_cases`) on the default model.

"The same" means equal token ids, or a first difference at which the model itself is undecided (`TIE`); each such case is printed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, REGEX, Constraint
from tests.end_to_end.constrained_cases import Case, cases, constraints, mismatched
from tests.end_to_end.constrained_decoder import Decoder, Output, note
from tests.end_to_end.json_checks import problem

pytestmark = pytest.mark.model

TIE = 1e-3
"""Difference of two logits below which sums in another order may decide."""
FEW = 6
"""Cases of each of both sets in the short form."""
SHORT, LONG = 24, 128
"""Most tokens of an output in the two forms."""
PLAIN = 0.95
"""Share of the outputs asked for that have to be those of plain masking."""


ASKED, MISMATCHED = (
    pytest.param(of, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]) for of in ("asked", "mismatched")
)


@dataclass
class Results:
    """Cases with jumps and without.

    Attributes:
        asked: the prompts ask for what the constraints allow.
    """

    cases: list[Case]
    asked: bool
    most: int
    on: list[Output]
    off: list[Output]


@pytest.fixture(scope="module", params=["few", ASKED, MISMATCHED])
def results(request: pytest.FixtureRequest, decoder: Decoder) -> Results:
    of = request.param
    chosen, most = cases() if of == "asked" else mismatched(), LONG
    if of == "few":
        chosen, most = [*_few(cases()), *_few(mismatched())], SHORT
    on, off = (decoder.run(chosen, jump=jump, most=most) for jump in (True, False))
    return Results(chosen, of == "asked", most, on, off)


def _few(every: list[Case]) -> list[Case]:
    return every[:: len(every) // FEW][:FEW]


def test_the_pairs(decoder: Decoder) -> None:
    """There are three hundred of each set, all different, and the examples in the prompts are what their constraint allows."""
    for every in (cases(), mismatched()):
        assert len(every) == 300 == len({(case.constraint, case.prompt) for case in every})
    shown = [(name, of, text) for name, of, prompts in constraints() for text in prompts.outputs()]
    assert [(name, text) for name, of, text in shown if not matches(decoder, of, text)] == []
    assert [(name, text) for name, of, text in shown if not decoder.matches(of, text)] == []


def test_jumps_do_not_change_the_output(results: Results, decoder: Decoder) -> None:
    """Ids are equal with jumps and without, and with them fewer steps are needed."""
    differences = []
    for case, on, off in zip(results.cases, results.on, results.off, strict=True):
        assert (on.error, off.error) == ("", ""), case
        if (place := first_difference(on.tokens, off.tokens)) is not None:
            gap = abs(decoder.gap(case, off.tokens[:place], *next_of(off, on, place)))
            note(f"{case}: differs at token {place}, logits {gap:.1e} apart")
            differences.append((case.name, gap))
    assert [one for one in differences if one[1] >= TIE] == []
    steps = [sum(output.steps for output in side) for side in (results.on, results.off)]
    forced, tokens = (
        sum(map(count, results.on)) for count in (lambda o: sum(o.forced), lambda o: len(o.tokens))
    )
    note(f"{len(results.cases)} outputs: {steps[0]} steps instead of {steps[1]}, {forced} of {tokens} forced")
    assert steps[0] < 0.8 * steps[1]


def test_jumps_only_count_forced_tokens(results: Results) -> None:
    """What is forced is the same on both sides, and a step without jumps brings one token."""
    for case, on, off in zip(results.cases, results.on, results.off, strict=True):
        assert off.steps == len(off.tokens), case
        if on.tokens == off.tokens:
            assert on.forced == off.forced, case


def test_finished_outputs_match(results: Results, decoder: Decoder) -> None:
    """Whatever ends by itself is what its constraint says, by a judge of another make."""
    ended = [
        (case, decoder.text(output))
        for case, output in zip(results.cases, results.on, strict=True)
        if output.ended
    ]
    assert len(ended) > len(results.cases) / 3
    assert [(case.name, text) for case, text in ended if not matches(decoder, case.constraint, text)] == []


def test_jumps_are_canonical(results: Results, decoder: Decoder) -> None:
    """No forced token takes part in a place where the ids are not those that the tokenizer makes of the text."""
    canonical, wrong = 0, []
    for case, output in zip(results.cases, results.on, strict=True):
        spots = list(decoder.spots(case, output))
        canonical += not spots
        wrong += [(case.name, spot) for spot in spots if spot.jumped]
    note(f"{canonical} of {len(results.cases)} outputs are canonical as a whole")
    assert wrong == []


def test_borders_of_forced_text_are_canonical(results: Results, decoder: Decoder) -> None:
    """Where the model is left to join forced text with what follows, it does so as the tokenizer would."""
    wrong = []
    for case, output in zip(results.cases, results.on, strict=True):
        for spot in decoder.spots(case, output):
            note(f"{case}: {spot}")
            if spot.certain:
                wrong.append((case.name, spot.text))
    assert wrong == []


@pytest.mark.parametrize("results", [ASKED, MISMATCHED], indirect=True)
def test_the_text_is_that_of_plain_masking(results: Results, decoder: Decoder) -> None:
    """At least `PLAIN` of the outputs asked for are those of sampling token by token under llguidance's masks; every difference has its reason.

    The reason is a tie, or that the other side had no such choice: each engine leaves out tokens that cannot begin a canonical encoding of what is forced, and
    they see different far ahead. A model that is asked for something else than the constraint allows begins words in
    unnatural ways more often: the share is printed, and has no bound.
    """
    plain = decoder.plain(results.cases, most=results.most)
    same, unexplained = 0, []
    for case, one, two in zip(results.cases, results.on, plain, strict=True):
        if is_same_text(decoder, one, two):
            same += 1
            continue
        place = first_difference(one.tokens, two.tokens)
        assert place is not None
        reason = why(decoder, case, one, two, place)
        note(f"{case}: {decoder.text(one)[-60:]!r}, plain {decoder.text(two)[-60:]!r}: {reason}")
        if not reason:
            unexplained.append(case.name)
    note(f"{same} of {len(results.cases)} are those of plain masking")
    assert unexplained == []
    assert same >= PLAIN * len(results.cases) or not results.asked


def first_difference(one: list[int], two: list[int]) -> int | None:
    """The first place where they are not equal."""
    differ = [place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if differ:
        return differ[0]
    return None if len(one) == len(two) else min(len(one), len(two))


def next_of(one: Output, two: Output, place: int) -> tuple[int, int]:
    """Their tokens at `place`."""
    return one.tokens[place], two.tokens[place]


def is_same_text(decoder: Decoder, one: Output, two: Output) -> bool:
    """Equal, or equal as far as one that was cut goes: ids of one text need not be equally many."""
    shorter, longer = sorted((one, two), key=lambda output: len(decoder.written(output.tokens)))
    text, whole = decoder.written(shorter.tokens), decoder.written(longer.tokens)
    return text == whole or (not shorter.ended and whole.startswith(text))


def why(decoder: Decoder, case: Case, one: Output, two: Output, place: int) -> str:
    """The reason of a difference; "" for none that holds."""
    ours, plain = next_of(one, two, place)
    before = one.tokens[:place]
    gap = decoder.gap(case, before, plain, ours)
    at = f"at token {place}, {decoder.written([plain])!r} {gap:+.3g} over {decoder.written([ours])!r}"
    if abs(gap) < TIE:
        return f"{at}: a tie"
    if not decoder.allowed(case, before, plain, plain=False):
        return f"{at}: not canonical before what is forced"
    written = decoder.written_for(case, before, plain)
    if written == ours:
        return f"{at}: joined with what it forces, so that both are canonical"
    if written < 0:
        return f"{at}: not canonical beside what is forced, so chosen anew"
    if not decoder.allowed(case, before, ours, plain=True):
        return f"{at}: left out by llguidance's mask"
    return ""


def matches(decoder: Decoder, constraint: Constraint, text: str) -> bool:
    """Whether `text` is what the constraint says: by `re`, `json`, `jsonschema`; for Lark by the engine's own matcher."""
    kind, source = constraint.kind, constraint.source
    if kind == REGEX:
        return re.fullmatch(source, text) is not None
    if kind == CHOICE:
        return text in json.loads(source)
    if kind == JSON_SCHEMA:
        return not problem(json.loads(source), text)
    return decoder.llguidance.load(constraint, b"").matches(text)
