"""The choice between the compressed FSM and llguidance, and what both make of one constraint."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX, Constraint
from sgl_actors.lang.constraints.engines import AUTO, FSM, LLGUIDANCE, Engines
from sgl_actors.lang.constraints.fsm_grammar import FsmGrammar
from sgl_actors.lang.constraints.grammar import Declined, Grammar, mask_words
from sgl_actors.lang.constraints.llguidance_grammar import LlguidanceGrammar
from tests.lang.constraints.vocabularies import byte_level, id_of

ROOT = Path(__file__).parents[3]
LEVEL = byte_level()
SIZE = 640
END = id_of(LEVEL, "<end>")
OF = LEVEL.to_str(), [END], SIZE
ENGINES = {name: Engines(*OF, engine=name) for name in (AUTO, FSM, LLGUIDANCE)}
CITY = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "big": {"type": "boolean"}},
        "required": ["name", "big"],
        "additionalProperties": False,
    }
)
TREE = '{"type": "array", "items": {"$ref": "#"}}'
DATE = Constraint(REGEX, "[0-9]{4}-[0-9]{2}")
CHOICES = ["né", "nè\n", "", "a+b (c)", '"\\', "{é}~#&-- x"]
NESTED = Constraint(LARK, 'start: "(" start? ")"')


def load(engines: Engines, constraint: Constraint) -> Grammar:
    return engines.load(constraint, engines.compile(constraint).automaton)


def mask(grammar: Grammar) -> list[int]:
    row = np.zeros(mask_words(SIZE), np.int32)
    grammar.mask_into(row)
    return row.tolist()


@pytest.mark.parametrize(
    ("constraint", "engine", "why"),
    [
        (DATE, FSM, ""),
        (Constraint(CHOICE, json.dumps(CHOICES)), FSM, ""),
        (Constraint(JSON_SCHEMA, CITY), FSM, ""),
        (Constraint(JSON_SCHEMA, TREE), LLGUIDANCE, "$ref"),
        (NESTED, LLGUIDANCE, "lark: a context-free grammar"),
    ],
)
def test_the_fsm_comes_first(constraint: Constraint, engine: str, why: str) -> None:
    """What is regular is the FSM's and travels as an automaton; llguidance takes the rest, and it is said why."""
    compiled = ENGINES[AUTO].compile(constraint)
    assert compiled.engine == engine
    assert why in compiled.why
    assert bool(compiled.why) == (engine == LLGUIDANCE) == (not compiled.automaton)
    grammar = Engines(*OF).load(constraint, compiled.automaton)
    assert isinstance(grammar, FsmGrammar if engine == FSM else LlguidanceGrammar)
    assert mask(grammar) == mask(load(ENGINES[AUTO], constraint))


@pytest.mark.parametrize(
    "constraint", [DATE, Constraint(CHOICE, '["a", "ab"]'), Constraint(JSON_SCHEMA, CITY), NESTED]
)
def test_an_engine_can_be_asked_for(constraint: Constraint) -> None:
    """llguidance takes all; the FSM refuses what it would have declined, with the reason."""
    compiled = ENGINES[LLGUIDANCE].compile(constraint)
    assert compiled == (LLGUIDANCE, b"", "engine: llguidance is asked for")
    assert isinstance(ENGINES[LLGUIDANCE].load(constraint, b""), LlguidanceGrammar)
    if constraint.kind != LARK:
        assert ENGINES[FSM].compile(constraint).engine == FSM
        return
    problem = (
        r"lark: the compressed FSM does not take it \(lark: a context-free grammar\); engine 'auto' does"
    )
    with pytest.raises(InvalidRequest, match=problem) as caught:
        ENGINES[FSM].compile(constraint)
    assert caught.value.param == LARK


@pytest.mark.parametrize("engine", [FSM, LLGUIDANCE])
@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint(CHOICE, json.dumps(CHOICES)), CHOICES, ["n", "né\n", "a+b", " ", "aab (c)"]),
        (
            Constraint(JSON_SCHEMA, CITY),
            ['{"name": "Zoë", "big": true}'],
            ['{"big": true, "name": "Zoë"}', "{}"],
        ),
        (DATE, ["2024-12"], ["2024-1", "x2024-12"]),
    ],
)
def test_both_mean_the_same(engine: str, constraint: Constraint, good: list[str], bad: list[str]) -> None:
    """A text that is allowed can be written by either and is complete then, and any other matches neither."""
    fresh = load(ENGINES[engine], constraint)
    tokens = ENGINES[engine].tokens
    for text in good:
        assert fresh.matches(text)
        one = fresh.copy()
        for token in tokens.encode(text.encode()):
            one.advance(token)
        assert one.is_accepting
    assert not any(map(fresh.matches, bad))


@pytest.mark.parametrize("engine", [AUTO, FSM, LLGUIDANCE])
@pytest.mark.parametrize(
    ("constraint", "problem"),
    [
        (Constraint(REGEX, "a(b"), "regex: "),
        (Constraint(REGEX, "[a&&b]"), "regex: "),
        (Constraint(CHOICE, "[]"), "choice: there is nothing to choose from"),
        (Constraint(CHOICE, '"yes"'), "choice: no JSON array of strings"),
        (Constraint(CHOICE, '["a", 1]'), "choice: no JSON array of strings"),
        (Constraint(CHOICE, '["a'), "choice: no JSON array of strings"),
        (Constraint(JSON_SCHEMA, '{"type": '), "json_schema: "),
        (Constraint(JSON_SCHEMA, '{"type": "thing"}'), "json_schema: "),
        (Constraint(JSON_SCHEMA, '{"type": "array", "uniqueItems": true}'), "json_schema: uniqueItems"),
        (Constraint("poem", "x"), "constraint: 'poem' is none of regex, json_schema, lark, choice"),
    ],
)
def test_what_is_wrong_is_refused_by_all(engine: str, constraint: Constraint, problem: str) -> None:
    """A source that is no good is the asker's error and names its kind, whichever engine is used."""
    with pytest.raises(InvalidRequest) as caught:
        ENGINES[engine].compile(constraint)
    assert caught.value.message.startswith(problem)
    assert caught.value.param == problem.partition(":")[0]


def test_what_shows_only_at_the_first_mask() -> None:
    """Compiling for llguidance goes as far as the first mask: a grammar that nothing satisfies is refused there."""
    with pytest.raises(InvalidRequest, match="lark: no token can come next"):
        ENGINES[AUTO].compile(Constraint(LARK, 'start: /[a&&b]/ "x"'))


def test_an_expression_of_ours_is_no_error_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the expression of a schema does not compile, the FSM declines the schema."""

    def broken(source: str) -> str:
        return "a(b"

    monkeypatch.setattr("sgl_actors.lang.constraints.schema_regex.schema_regex", broken)
    compiled = ENGINES[AUTO].compile(Constraint(JSON_SCHEMA, CITY))
    assert (compiled.engine, compiled.automaton) == (LLGUIDANCE, b"")


def test_what_the_fsm_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regex that is too much for it is llguidance's, and the reason is handed on; asked for the FSM, it is an error."""

    def declining(source: str) -> None:
        raise Declined("more than 9 states")

    monkeypatch.setattr("sgl_actors.lang.constraints.regex_automaton.compile_regex", declining)
    assert ENGINES[AUTO].compile(DATE) == (LLGUIDANCE, b"", "more than 9 states")
    with pytest.raises(InvalidRequest, match=r"does not take it \(more than 9 states\)"):
        ENGINES[FSM].compile(DATE)


def test_unknown_engines_and_vocabularies() -> None:
    """There are three names; a vocabulary that cannot be used shows at the first constraint."""
    with pytest.raises(InvalidRequest, match="engine: 'outlines' is none of auto, fsm, llguidance"):
        Engines(*OF, engine="outlines")
    with pytest.raises(InvalidRequest, match="no end token"):
        Engines(OF[0], [], SIZE).compile(DATE)
    with pytest.raises(InvalidRequest, match="tokenizer cannot be used"):
        Engines("{}", [END], SIZE).set_up()


def test_the_fsm_needs_no_other_engine() -> None:
    """Without constraints that it declines, llguidance is not even imported."""
    code = """
import sys
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.constraints.engines import Engines
from tests.lang.constraints.vocabularies import byte_level
level = byte_level()
engines = Engines(level.to_str(), [level.token_to_id("<end>")], 640)
constraint = Constraint("regex", "a+")
engines.load(constraint, engines.compile(constraint).automaton)
print("llguidance" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert (done.stdout.strip(), done.stderr) == ("False False", "")


def test_threads_set_up_one_vocabulary() -> None:
    """Several threads that compile at once share one vocabulary and one llguidance."""
    engines = Engines(*OF)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: load(engines, one), [DATE, NESTED, DATE, NESTED]))
    assert mask(found[0]) == mask(found[2])
    assert mask(found[1]) == mask(found[3])
    assert engines.tokens is engines.tokens
