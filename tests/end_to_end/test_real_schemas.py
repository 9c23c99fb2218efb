"""Schemas as they are in the world, on the default model: what is finished is valid, and no schema gets worse (`real_schemas`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.constrained_decoder import Decoder, note
from tests.end_to_end.json_checks import problem, schema_problem
from tests.end_to_end.real_schemas import DECLINED, RATCHET, case, is_better, schemas, verdict

pytestmark = pytest.mark.model

FEW, MANY = 6, 100
SHORT, LONG = 32, 256
"""Schemas (the smallest) and most tokens of the two forms."""


@pytest.fixture(scope="module")
def found(data: Path) -> dict[str, Any]:
    return schemas(data)


def test_no_schema_gets_worse(found: dict[str, Any], decoder: Decoder) -> None:
    """Each goes to the engine that the ratchet file names or a better one, or is declined for the reason that stands there."""
    ratchet: dict[str, str] = json.loads(RATCHET.read_text("utf-8"))
    now = {name: verdict(decoder.engines, case(name, schema)) for name, schema in found.items()}
    better = {name: one for name, one in now.items() if is_better(one, ratchet[name])}
    worse = {name: (ratchet[name], one) for name, one in now.items() if one != ratchet[name]}
    assert {name: pair for name, pair in worse.items() if name not in better} == {}
    note(f"better than the ratchet: {better}")


def test_what_jsonschema_takes_works_or_is_declined_with_a_reason(
    found: dict[str, Any], decoder: Decoder
) -> None:
    """The reason names a keyword of the schema, or its value."""
    for name, schema in found.items():
        if schema_problem(schema):
            continue
        reason = verdict(decoder.engines, case(name, schema)).partition(DECLINED)[2]
        words = set(reason.replace("'", " ").replace('"', " ").replace("`", " ").replace(":", " ").split())
        assert not reason or words & _words(schema), f"{name}: {reason}"


@pytest.mark.parametrize(
    ("count", "most", "draws"),
    [
        pytest.param(FEW, SHORT, [(0.0, 0), (1.0, 1)], id="few"),
        pytest.param(
            MANY,
            LONG,
            [(0.0, 0), (1.0, 1), (1.0, 2), (1.0, 3)],
            marks=[pytest.mark.slow, pytest.mark.timeout(3600)],
            id="all",
        ),
    ],
)
def test_finished_outputs_are_valid(
    found: dict[str, Any], decoder: Decoder, count: int, most: int, draws: list[tuple[float, int]]
) -> None:
    """Greedy or drawn, whatever ends by itself is JSON that the schema allows, formats included."""
    usable = {
        name: schema
        for name, schema in found.items()
        if not verdict(decoder.engines, case(name, schema)).startswith(DECLINED)
    }
    names = sorted(usable, key=lambda name: len(json.dumps(usable[name])))[:count]
    cases = [case(name, usable[name]) for name in names]
    ended = 0
    wrong = []
    for temperature, seed in draws:
        outputs = decoder.run(cases, jump=True, most=most, temperature=temperature, seed=seed)
        for name, output in zip(names, outputs, strict=True):
            assert output.error == "", (name, output.error)
            ended += output.ended
            if output.ended and (what := problem(usable[name], decoder.text(output))):
                wrong.append((name, temperature, seed, what, decoder.text(output)))
    note(f"{ended} of {len(draws) * len(names)} outputs ended by themselves")
    assert wrong == []
    assert ended > 0


def _words(schema: Any) -> set[str]:
    """All keys and texts of a schema, and its words."""
    text = json.dumps(schema, ensure_ascii=False)
    for mark in '"{}[],:':
        text = text.replace(mark, " ")
    return set(text.split())
