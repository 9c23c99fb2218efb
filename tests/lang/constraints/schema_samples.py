"""Random schemas, random outputs under a grammar over bytes, and mutations of texts."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np

from sgl_actors.lang.constraints.automaton import Automaton
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, Constraint
from sgl_actors.lang.constraints.grammar import Grammar, mask_words
from tests.lang.byte_vocabulary import EOS, SIZE, byte_compiler, ids_of, text_of

COMPILER = byte_compiler()
FORMATS = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
PATTERNS = (
    *("^[a-z]+$", "b", "^a|b$", "^.{1,2}$", "^(ab|c)?[x-z]{2}$", r"^\w+-\d{2,}$", r"^[\w.-]$", r"^\s\S$"),
    *(r"^[\s\S]$", r"^[^a\n]$", r"^[\t-z]$", r"^\\\"$", "^[^x-z]{2}$", r"^[\x00-\x08\"]$", r"^\u00e9*?\x41$"),
)
CONSTANTS: tuple[Any, ...] = (
    "a",
    "b\n",
    '\t"\\é',
    1,
    -2,
    1.5,
    -0.25,
    True,
    None,
    [1, "a"],
    {"x": 1, "y": []},
    {},
    [],
)
NUMBERS = [
    "0",
    "-0",
    "1",
    "-1",
    "0.0",
    "-0.0",
    "1.0",
    "10",
    "-5",
    "5",
    "5.0",
    "5.5",
    "-0.5",
    "0.05",
    "100",
    "999",
    "1000",
    "1000.0",
    "1e5",
    "-1000",
    "0.1",
    "0.10",
    "01",
]
OTHERS = ("null", "true", "[]", "{}", '""', '"a"', r'"\u0061"', "[1,2]", '{"a":1}', " null")
_ENDS = {ids_of(character)[0] for character in '"}]'}
_ASCII = {ids_of(chr(code))[0] for code in range(32, 127)}
_CHARACTERS = '"\\{}[], :0123456789.-eEtruefalsn null abcxyzu\n\x7fé'


def grammar(schema: Any) -> Grammar:
    """llguidance's grammar of a schema."""
    source = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return COMPILER.compile(Constraint(JSON_SCHEMA, source))


def written(beginning: Grammar, random: Random, limit: int = 300) -> str | None:
    """An output chosen byte by byte from masks, with a bias to come to an end; None if it did not within `limit` bytes."""
    one, ids = beginning.copy(), list[int]()
    row = np.zeros(mask_words(SIZE), dtype=np.int32)
    for _ in range(limit):
        one.mask_into(row)
        allowed = set(np.unpackbits(row.view(np.uint8), bitorder="little").nonzero()[0].tolist())
        if EOS in allowed and (len(allowed) == 1 or random.random() < 0.5):
            return text_of(ids)
        allowed.discard(EOS)
        likely = allowed & _ENDS if random.random() < 0.35 else allowed & _ASCII
        ids.append(random.choice(sorted(likely if likely and random.random() < 0.95 else allowed)))
        one.advance(ids[-1])
    return None


def mutated(text: str, random: Random) -> str:
    """A text with a few characters changed, added, left out or repeated."""
    for _ in range(random.choice((1, 1, 2))):
        one, other = sorted(random.randrange(len(text) + 1) for _ in range(2))
        kind = random.randrange(5)
        middle = random.choice(_CHARACTERS) if kind < 2 else text[one:other] * 2 if kind == 2 else ""
        text = text[:one] + middle + (text[one + (kind == 1) :] if kind < 2 else text[other:])
    return text


def schema(random: Random, depth: int) -> dict[str, Any]:
    """A schema of which most are regular."""
    kind = random.randrange(7)
    if depth == 0 or random.random() < 0.3:
        return _scalar(random)
    if kind < 3:
        return _object(random, depth)
    if kind < 5:
        return _array(random, depth)
    if kind == 5:
        options = [schema(random, depth - 1) for _ in range(random.randrange(1, 4))]
        return {random.choice(("anyOf", "oneOf")): options}
    if random.random() < 0.5:
        return {**schema(random, depth - 1), "allOf": [schema(random, depth - 1)]}
    properties = {"a": schema(random, depth - 1), "b": _scalar(random)}
    either = [{"required": ["a"]}, {"required": ["b"]}]
    kinds = ["object", "null"]
    return {"type": kinds, "properties": properties, "additionalProperties": False, "anyOf": either}


def _scalar(random: Random) -> dict[str, Any]:
    kind = random.randrange(8)
    if kind < 2:
        return _number(random)
    if kind == 2:
        return {"type": random.choice(("boolean", "null", ["integer", "null"]))}
    if kind == 3:
        return {"enum": [random.choice(CONSTANTS) for _ in range(random.randrange(1, 4))]}
    if kind == 4:
        return {"const": random.choice(CONSTANTS)}
    if kind == 5:
        return {"type": "string", "format": random.choice(FORMATS)}
    if kind == 6:
        return {"type": "string", "pattern": random.choice(PATTERNS)}
    return {"type": "string", "minLength": random.randrange(3), "maxLength": random.randrange(2, 5)}


def _number(random: Random) -> dict[str, Any]:
    low, high = sorted(random.choice((-1000, -100, -12, -5, -1, 0, 1, 3, 9, 10, 17, 250)) for _ in range(2))
    keys = random.choice(((), ("minimum",), ("maximum",), ("minimum", "maximum"), ("exclusiveMinimum",)))
    bounds = {key: low if key.endswith("inimum") else high for key in keys}
    if random.random() < 0.3:
        bounds["exclusiveMaximum"] = high
    steps = {"multipleOf": random.choice((1, 0.1, 0.01))} if random.random() < 0.3 else {}
    return {"type": random.choice(("integer", "number")), **bounds, **steps}


def _object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(["a", "ab", "b", "name", "x y", 'q"', "é", "\n"], random.randrange(5))
    found: dict[str, Any] = {
        "type": "object",
        "properties": {
            name: schema(random, depth - 1) if random.random() < 0.95 else False for name in names
        },
        "required": [name for name in names if random.random() < 0.5],
        "additionalProperties": random.random() < 0.3 and _scalar(random),
    }
    if random.random() < 0.15:
        found["patternProperties"] = {random.choice(("^x", "z$", "^[a-c]{2}$")): _scalar(random)}
    if random.random() < 0.1:
        found["minProperties"] = random.randrange(3)
    keys = random.sample(sorted(found), len(found))
    return {key: found[key] for key in keys}


def _array(random: Random, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "array",
        "items": schema(random, depth - 1) if random.random() < 0.8 else False,
    }
    if random.random() < 0.4:
        found["prefixItems"] = [schema(random, depth - 1) for _ in range(random.randrange(1, 3))]
    for key in ("minItems", "maxItems"):
        if random.random() < 0.5:
            found[key] = random.randrange(4)
    return found


def walked(automaton: Automaton, random: Random, limit: int = 300) -> str | None:
    """A text chosen byte by byte from an automaton; None if it did not come to an end within `limit` bytes."""
    state, data = 0, bytearray()
    for _ in range(limit):
        steps = automaton.table[state][automaton.classes]
        if automaton.accepting[state] and ((steps < 0).all() or random.random() < 0.5):
            return data.decode()
        allowed = np.flatnonzero(steps >= 0).tolist()
        likely = [byte for byte in allowed if chr(byte) in '"}]'] if random.random() < 0.35 else []
        data.append(random.choice(likely or [byte for byte in allowed if byte < 127] or allowed))
        state = int(steps[data[-1]])
    return None
