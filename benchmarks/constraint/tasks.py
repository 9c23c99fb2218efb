"""What is generated under constraints: prompts, constraint and bounds of five tasks. Data: docs/data.md."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.workload.programs import read, read_text
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, REGEX, Constraint
from sgl_actors.lang.constraints.schema import strict

OCTET = "(25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
IPV4 = rf"({OCTET}\.){{3}}{OCTET}"
WORDS = r'"[\w\d\s]{1,16}"'
CHARACTER = rf"""\{{
    "name": {WORDS},
    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",
    "blood status": "(Pure-blood|Half-blood|Muggle-born)",
    "occupation": "(student|teacher|auror|ministry of magic|death eater|order of the phoenix)",
    "wand": \{{
        "wood": {WORDS},
        "core": {WORDS},
        "length": [0-9]{{1,2}}\.[0-9]{{0,2}}
    \}},
    "alive": "(Alive|Deceased)",
    "patronus": {WORDS},
    "bogart": {WORDS}
\}}"""
"""The character sheet of the paper (arXiv 2312.07104, section 4) as SGLang's benchmark of jump-forward asks for it."""
CITY = rf"""\{{
  "name": {WORDS},
  "country": {WORDS},
  "latitude": [-+]?[0-9]{{1,3}}\.[0-9]{{1,2}},
  "population": [0-9]{{1,9}},
  "top 3 landmarks": \[{WORDS}, {WORDS}, {WORDS}\]
\}}"""
"""The same benchmark's sheet of a city, with bounded numbers."""
STRUCTS: dict[str, Any] = {
    "type": "array",
    "minItems": 4,
    "maxItems": 4,
    "items": {
        "type": "object",
        "properties": {
            "product": {"type": "string", "maxLength": 16},
            "category": {"enum": ["kitchen", "garden", "clothing", "electronics"]},
            "unit_price": {"type": "integer", "minimum": 1, "maximum": 999},
            "in_stock": {"type": "boolean"},
        },
        "required": ["product", "category", "unit_price", "in_stock"],
        "additionalProperties": False,
    },
}
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SITES = ("a public name server", "your own computer", "a printer in the office", "a home router")
SHOPS = ("a department store", "a village shop", "a second-hand market", "an online shop for students")


OUTLINE = 600
"""Characters of a schema's outline in a prompt."""


@dataclass(frozen=True)
class Ask:
    """One request, greedy."""

    prompt: str
    constraint: Constraint


@dataclass(frozen=True)
class Task:
    """Requests of one kind.

    Attributes:
        asks: made of the folder of the data.
        tokens: most tokens of an output.
        targets: least ratio of output tokens per second, jumps on over off, by concurrency.
    """

    asks: Callable[[Path], list[Ask]]
    tokens: int
    targets: Mapping[int, float] = field(default_factory=dict)


def characters(data: Path) -> list[Ask]:
    """Fifty names."""
    ask = (
        "{} is a character in Harry Potter. Please fill in the following information about this character.\n"
    )
    names = read_text(data, "json_decode/characters_50.txt").split("\n")
    return [Ask(ask.format(name.strip()), Constraint(REGEX, CHARACTER)) for name in names if name.strip()]


def cities(data: Path) -> list[Ask]:
    """The beginnings of sixteen articles, some thousand tokens each."""
    ask = "Please extract the information of a city from the following page.\nPage begin.\n{}\nPage end.\nHere it is in JSON.\n"
    rows = read(data, "json_decode/city_documents_22.jsonl")
    return [
        Ask(ask.format(row["document"]), Constraint(REGEX, CITY)) for row in rows if row["kind"] == "lead"
    ]


def structs(_: Path) -> list[Ask]:
    """Lists of four objects."""
    ask = "List 4 products number {} to {} of {} as a JSON array."
    prompts = (ask.format(4 * n + 1, 4 * n + 4, shop) for n in range(8) for shop in SHOPS)
    return [Ask(TURN.format(prompt), Constraint(JSON_SCHEMA, json.dumps(STRUCTS))) for prompt in prompts]


def addresses(_: Path) -> list[Ask]:
    """Little is forced, and a dot at a time: what jumps cost where they bring nothing."""
    ask = "Write an IPv4 address that {} could have (network {})."
    prompts = (ask.format(site, n) for n in range(8) for site in SITES)
    return [Ask(TURN.format(prompt), Constraint(REGEX, IPV4)) for prompt in prompts]


def schemas(data: Path) -> list[Ask]:
    """Schemas of function calls and configuration files as they are in the world, whether they can be used or not."""
    return [_ask_for(row, row["schema"]) for row in _rows(data)]


def strict_schemas(data: Path) -> list[Ask]:
    """The same as strict function calling wants them: objects take no properties but their own."""
    return [_ask_for(row, strict(row["schema"])) for row in _rows(data)]


def _rows(data: Path) -> list[dict[str, Any]]:
    """All, mixed: those beside each other in the file are much alike."""
    rows = list(read(data, "json_decode/schemas_100.jsonl"))
    random.Random(0).shuffle(rows)
    return rows


def _ask_for(row: dict[str, Any], schema: dict[str, Any]) -> Ask:
    """A call, asked for as models are: by the name and by what is to be given."""
    name = row["id"].partition("/")[2].removesuffix(".json").rpartition("_")[0] or row["id"]
    wanted = json.dumps(_outline(row["schema"]))[:OUTLINE]
    prompt = f"Call the function {name}. Its arguments: {wanted}\nAnswer with the arguments as JSON, with short and plausible values."
    return Ask(TURN.format(prompt), Constraint(JSON_SCHEMA, json.dumps(schema)))


def _outline(schema: Any) -> Any:
    """Names of properties and their types."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(schema.get("properties"), dict):
        return {name: _outline(part) for name, part in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        return [_outline(schema["items"])]
    return schema.get("enum", schema.get("type", "any"))


TASKS = {
    "character": Task(characters, 200, {1: 2.0, 16: 1.4}),
    "city": Task(cities, 160),
    "structs": Task(structs, 200),
    "ipv4": Task(addresses, 24),
    "real": Task(schemas, 128, {1: 1.15, 16: 0.99}),
    "strict": Task(strict_schemas, 128),
}
