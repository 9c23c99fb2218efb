"""The engines by themselves, over the default model's vocabulary: how long constraints take to build, masks to fill, and how much text is forced.

Six constraints as they are usual in comparisons of such engines, each with a text that it allows. "First" is the mask of a state that nobody has come
to before, "warm" the same again. The text that is forced before each character is compared with llguidance's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.constraint.tasks import CHARACTER, IPV4
from benchmarks.harness import median, show
from sgl_actors.actors.node.models import resolve
from sgl_actors.actors.tokenizer import vocabulary
from sgl_actors.bench.samples import percentile
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, REGEX, Constraint
from sgl_actors.lang.constraints.engines import Engines, automaton_of
from sgl_actors.lang.constraints.grammar import Grammar, mask_words
from sgl_actors.lang.constraints.tokens import Tokens

Targets = list[tuple[str, float, str, float]]

BUILD, WARM, FIRST = 100.0, 20.0, 35.0
"""Targets: milliseconds to build an automaton; microseconds of a warm mask, median; milliseconds of a first one, p99."""
ROUNDS = 5

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "status": {"enum": ["open", "closed", "cancelled"]},
        "customer": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}, "vip": {"type": "boolean"}},
            "required": ["name", "vip"],
            "additionalProperties": False,
        },
        "lines": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {"sku": {"type": "string", "maxLength": 8}, "price": {"type": "number", "minimum": 0, "maximum": 999}},
                "required": ["sku", "price"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["status", "customer", "lines"],
    "additionalProperties": False,
}  # fmt: skip


def tree(depth: int) -> dict[str, Any]:
    """A node whose children are nodes, to that depth."""
    properties: dict[str, Any] = {"value": {"type": "integer", "minimum": 0, "maximum": 99}}
    if depth > 1:
        properties["left"] = {"anyOf": [tree(depth - 1), {"type": "null"}]}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


VERDICTS = [
    "the claim is supported",
    "the claim is refuted",
    "not enough information",
    "unclear",
    "off topic",
]
SHEET = """{
    "name": "Harry Potter",
    "house": "Gryffindor",
    "blood status": "Half-blood",
    "occupation": "student",
    "wand": {
        "wood": "holly",
        "core": "phoenix feather",
        "length": 11.0
    },
    "alive": "Alive",
    "patronus": "stag",
    "bogart": "dementor"
}"""
SAMPLES: dict[str, tuple[Constraint, str]] = {
    "date": (Constraint(REGEX, r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"), "2026-11-22"),
    "ipv4": (Constraint(REGEX, IPV4), "192.168.1.254"),
    "choice": (Constraint(CHOICE, json.dumps(VERDICTS)), VERDICTS[2]),
    "character": (Constraint(REGEX, CHARACTER), SHEET),
    "schema": (
        Constraint(JSON_SCHEMA, json.dumps(ORDER)),
        json.dumps({"status": "cancelled", "customer": {"name": "Ada", "vip": True}, "lines": [{"sku": "A-1", "price": 9.5}]}),
    ),
    "recursive": (
        Constraint(JSON_SCHEMA, json.dumps(tree(3))),
        json.dumps({"value": 1, "left": {"value": 22, "left": {"value": 7}}}),
    ),
}  # fmt: skip
FORCED = {"date": (3, 10), "ipv4": (2, 13), "choice": (21, 22), "character": (239, 296)}
"""Characters of the samples that are forced, of how many: "0" after "2" and two dashes; the dots behind three digits; all but the first letter; keys and
punctuation of the sheet, and what is left of its choices once they are made."""


def measure() -> Targets:
    """Print one line per constraint; returns what is to be reached."""
    known = vocabulary.load(resolve("smollm2").path)
    size = len(known)
    of = known.tokenizer.to_str(), known.eos_ids, size
    ours, theirs = Engines(*of), Engines(*of, engine="llguidance")
    aims: Targets = []
    times: dict[str, list[float]] = {"warm": [], "first": []}
    for name, (constraint, text) in SAMPLES.items():
        compiled = ours.compile(constraint)
        build = timed(lambda one=constraint: automaton_of(one))  # type: ignore[misc]
        grammar = ours.load(constraint, compiled.automaton)
        other = theirs.load(constraint, b"")
        tokens = ours.tokens.encode(text.encode())
        first, warm = masks(grammar, tokens, size), masks(grammar, tokens, size)
        counted, oracle = (forced_characters(one, text, ours.tokens) for one in (grammar, other))
        show(
            case=name, engine=compiled.engine, why=compiled.why, build_ms=build, llguidance_build_ms=timed(lambda one=constraint: theirs.load(one, b"")),  # type: ignore[misc]
            first_us_p50=median(first), first_us_max=max(first), warm_us_p50=median(warm), llguidance_us_p50=median(masks(other, tokens, size)),
            characters=len(text), forced=counted, forced_by_llguidance=oracle,
        )  # fmt: skip
        times["first"] += first
        times["warm"] += warm
        aims += [
            (f"{name}: is served by the compressed FSM", float(compiled.engine == "fsm"), ">=", 1),
            (f"{name}: ms to build", build, "<=", BUILD),
            (f"{name}: forced characters that llguidance does not know", float(counted != oracle), "<=", 0),
        ]
        if name in FORCED:
            aims.append(
                (
                    f"{name}: forced characters other than expected",
                    float((counted, len(text)) != FORCED[name]),
                    "<=",
                    0,
                )
            )
    first_ms = percentile(times["first"], 0.99) / 1e3
    return [
        *aims,
        ("warm mask, p50 in us", median(times["warm"]), "<=", WARM),
        ("first mask of a state, p99 in ms", first_ms, "<=", FIRST),
    ]


def timed(action: Callable[[], object]) -> float:
    """Milliseconds, median of `ROUNDS`."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        found.append((time.perf_counter() - began) * 1e3)
    return median(found)


def masks(fresh: Grammar, tokens: Sequence[int], size: int) -> list[float]:
    """Microseconds of the mask before each token."""
    grammar = fresh.copy()
    row = np.zeros(mask_words(size), dtype=np.int32)
    found = []
    for token in tokens:
        began = time.perf_counter()
        grammar.mask_into(row)
        found.append((time.perf_counter() - began) * 1e6)
        grammar.advance(token)
    return found


def forced_characters(fresh: Grammar, text: str, tokens: Tokens) -> int:
    """How many characters of `text` are written without a choice, when it is written character by character."""
    grammar = fresh.copy()
    at = forced = 0
    while at < len(text):
        known = len(grammar.forced_text())
        forced += known
        piece = text[at : at + max(1, known)]
        for token in chain.from_iterable(tokens.encode(one.encode()) for one in piece):
            grammar.advance(token)
        at += len(piece)
    return forced
