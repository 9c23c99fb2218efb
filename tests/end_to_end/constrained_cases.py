"""Constraints and prompts over which decoding has to be exact: 75 constraints of every kind, with four prompts each that ask for what they allow, and four that do not.

Everything is bounded, so that outputs end, and holds what is easy to get wrong: characters of several bytes, texts of which one begins another, forced text whose last
token joins what follows, repetitions, escapes. Python's `re` means the same by the expressions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.constraint.tasks import CHARACTER, IPV4, TURN
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, LARK, REGEX, Constraint
from tests.end_to_end import constrained_prompts as asked

REGEXES: Final = {
    "character": CHARACTER,
    "ipv4": IPV4,
    "ipv6": r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "mac": r"([0-9A-F]{2}:){5}[0-9A-F]{2}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "long date": r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (January|February|March|April|May|June|July|August|September|October|November|December) [1-3]?[0-9], (19|20)[0-9]{2}",
    "moment": r"20[0-9]{2}-(0[1-9]|1[0-2])-[0-2][0-9]T([01][0-9]|2[0-3]):[0-5][0-9]:00Z",
    "number": r"-?(0|[1-9][0-9]{0,6})(\.[0-9]{1,4})?([eE][+-]?[0-9]{1,2})?",
    "price": r"(\$|€|£|¥) ?[1-9][0-9]{0,2}(,[0-9]{3}){0,2}\.[0-9]{2}",
    "mail": r"[a-z]{1,10}(\.[a-z]{1,10})?@[a-z]{2,10}\.(com|org|co\.uk)",
    "address": r"https://(www\.)?[a-z]{3,12}\.(com|org|net)(/[a-z0-9-]{1,12}){0,2}",
    "version": r"v[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}(-(alpha|beta|rc)\.[0-9])?",
    "sql": r"SELECT (name|age|COUNT\(\*\)) FROM (users|orders)( WHERE (age|id) (=|>|<=) [0-9]{1,3})?( ORDER BY (name|age)( DESC)?)?;",
    "xml": r"<person><name>[A-Z][a-z]{1,10}</name><age>[1-9][0-9]?</age><city>[A-Z][a-z ]{2,12}</city></person>",
    "html": r"<ul>\n(  <li>[A-Za-z ]{3,12}</li>\n){2}</ul>",
    "call": r'get_weather\(city="[A-Za-z ]{2,16}", unit="(celsius|fahrenheit)", days=[1-7]\)',
    "python": r"def [a-z_]{3,14}\(([a-z]{1,6}(, [a-z]{1,6})?)?\) -> (int|str|None):\n    return [a-z0-9_]{1,12}\n",
    "table": r"\| name \| age \|\n\|------\|-----\|\n(\| [A-Z][a-z]{2,9} \| [1-9][0-9] \|\n){2}",
    "log": r"\[(INFO|WARNING|ERROR)\] [a-z]{3,8}: [a-z ]{5,24} \(code=[0-9]{3}\)",
    "react": r"Thought: [^\n\[\]]{5,40}\nAction: (Search|Lookup|Finish)\[[^\]\n]{2,20}\]",
    "commit": r"(feat|fix|docs|refactor)(\([a-z]{2,8}\))?!?: [a-z][a-z ]{4,30}",
    "list": r"\[[0-9]{1,2}(, [0-9]{1,2}){2,5}\]",
    "words": r"\w{3,12} \w{3,12}",
    "quoted": r'"[^"\\\n]{4,14}"',
    "any case": r"(?i:yes|no|perhaps)[.!]",
    "forced": r"The answer is (forty-two|unknown)\. That is all there is to say about it\.",
    "nothing to choose": r"There is nothing to choose here: 2 \+ 2 = 4\.",
    "verdict": r"Verdict: (true|false)\nConfidence: (low|medium|high)\nReason: [A-Z][a-z ,]{8,40}\.",
    "white space": r"a {3}b  (c|d)\t\n\n    e{1,3}",
    "pi": r"Pi is 3\.14159265[0-9]{2} and e is 2\.71828[0-9]{2}",
    "cyrillic": r"[А-Яа-яё]{4,10}( [а-яё]{3,8})?",
    "greek": r"Η πόλη είναι η [Α-Ω][α-ωά-ώ]{3,9}\.",
    "han": r"答案是[\u4e00-\u9fff]{2,5}。",
    "hangul": r"정답: [가-힣]{2,4}입니다",
    "emoji": r"(😀|😁|😂|🎉|🚀){1,3} done",
    "accents": r"(El|La) [a-záéíóúñ]{3,9} es (rápido|pequeño|difícil)\.",
    "mixed scripts": r"(Ответ|答え|الجواب): [0-9]{1,3}( км|公里| كم)",
}
CHOICES: Final = {
    "cities": ["Paris", "London", "Buenos Aires", "I do not know"],
    "prefixes": ["a", "ab", "abc", "abcd", "b"],
    "long prefixes": ["The answer cannot be known.", "The answer cannot be given.", "The answer is no."],
    "numbers": ["1", "10", "100", "1000", "2", "12"],
    "emoji": ["👍", "👎", "👍🏽", "👨‍👩‍👧", "🇫🇷", "🇫🇮"],
    "chinese": ["北京", "北京市", "上海", "不知道"],
    "japanese": ["東京", "京都", "大阪です", "わかりません"],
    "accents": ["café", "cafe\u0301", "cafe", "naïve", "São Paulo"],
    "arabic and hebrew": ["نعم", "لا", "כן", "לא"],
    "hindi and thai": ["हाँ", "नहीं", "ใช่", "ไม่ใช่"],
    "quotes": ['"yes"', "'yes'", "\\yes\\", "yes\n", " yes"],
    "one": ["Whatever you ask, this is the only possible answer — always."],
    "special": ["<|im_end|>", "<|im_start|>user", "</s>"],
    "sentences": ["Positive: the text is kind.", "Negative: the text is unkind.", "Neutral."],
}
GRAMMARS: Final = {
    "sum": 'start: term (" + " term)~0..2 " = " NUMBER\nterm: NUMBER | "(" term " * " NUMBER ")"\nNUMBER: /[1-9][0-9]?/',
    "brackets": 'start: "(" inner? ")"\ninner: "[" start "]" | WORD\nWORD: /[a-z]{1,8}/',
    "command": 'start: "move " direction " by " /[1-9]/ " steps" | "say \\"" /[a-z ]{2,20}/ "\\""\ndirection: "north" | "south" | "northwest"',
    "tagged": 'start: "<answer>" body "</answer>"\nbody: /[A-Z][a-z ]{3,20}/ | "<none/>"',
}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A strict object of these properties, all of them required."""
    strict = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties} | strict | more


def _text(most: int = 14) -> dict[str, Any]:
    return {"type": "string", "maxLength": most}


_WHOLE: Final = {"type": "integer", "minimum": 0, "maximum": 150}
_POINT: Final = _object(
    {
        "x": {"type": "integer", "minimum": -9, "maximum": 99},
        "y": {"type": "integer", "minimum": 0, "maximum": 9},
    }
)
SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "person": _object({"name": _text(), "age": _WHOLE, "married": {"type": "boolean"}}),
    "nested": _object({"user": _object({"name": _text(), "address": _object({"street": _text(), "city": _text()})}), "active": {"type": "boolean"}}),
    "enum": _object({"mood": {"enum": ["happy", "sad", "neither happy nor sad"]}, "score": {"enum": [1, 2.5, None, True]}}),
    "optional": _object({"title": _text(), "subtitle": _text(), "year": _WHOLE}, required=["title"]),
    "nullable": _object({"name": {"anyOf": [_text(), {"type": "null"}]}, "age": {"type": ["integer", "null"], "minimum": 0, "maximum": 99}}),
    "structs": _object({"points": {"type": "array", "items": _POINT, "minItems": 2, "maxItems": 3}}),
    "array": {"type": "array", "items": _text(10), "minItems": 2, "maxItems": 4},
    "pair": {"type": "array", "prefixItems": [_text(10), _WHOLE], "items": False, "minItems": 2},
    "union": {"anyOf": [_object({"kind": {"const": "circle"}, "radius": _WHOLE}), _object({"kind": {"const": "square"}, "side": _WHOLE})]},
    "constants": _object({"version": {"const": "1.0"}, "ok": {"const": True}, "tags": {"const": ["a", "b"]}, "note": _text()}),
    "pattern": _object({"code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, "colour": {"type": "string", "pattern": "^#[0-9a-f]{6}$"}}),
    "formats": _object({"born": {"type": "string", "format": "date"}, "at": {"type": "string", "format": "ipv4"}}),
    "uuid": _object({"id": {"type": "string", "format": "uuid"}, "name": _text()}),
    "definitions": _object({"start": {"$ref": "#/$defs/Point"}, "end": {"$ref": "#/$defs/Point"}}, **{"$defs": {"Point": _POINT}}),
    "unicode keys": _object({"имя": _text(), "年齢": _WHOLE, "ciudad — ñ": _text(), "😀": {"type": "boolean"}}),
    "escapes": _object({'say "hi"': {"const": 'a "quoted"\n\\ text'}, "tab\t": {"enum": ["\t", "\b\f", "é"]}}),
    "call": _object({"name": {"const": "search_hotels"}, "arguments": _object({"location": _text(16), "guests": {"type": "integer", "minimum": 1, "maximum": 9}})}),
    "tree": {"$ref": "#/$defs/Node", "$defs": {"Node": _object({"value": _WHOLE, "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 2}})}},
    "boolean": {"type": "boolean"},
}  # fmt: skip
MISMATCHED: Final = (
    "Who was Marie Curie, and what is she known for?",
    "Décris une journée à Paris en hiver.",
    "请介绍一下北京的天气。",
    "Какой город самый большой в Европе? 🚀",
    "Give me an example of what is asked for.",
    "¿Cuál es la respuesta correcta?",
    "Is 17 a prime number? Answer with 3 digits.",
    "東京について教えてください。",
)
"""Prompts that have nothing to do with any of the constraints."""
PER_CONSTRAINT: Final = 4
"""Of those, for each constraint; which ones takes turns."""


@dataclass(frozen=True)
class Case:
    """A prompt under a constraint.

    Attributes:
        name: of the constraint, and the number of the prompt.
        prompt: text, special tokens written out.
    """

    name: str
    constraint: Constraint
    prompt: str

    def __str__(self) -> str:
        return self.name


def constraints() -> Iterator[tuple[str, Constraint, asked.Prompts]]:
    """All constraints by name, with what asks for them."""
    for name, source in REGEXES.items():
        yield f"regex {name}", Constraint(REGEX, source), asked.REGEXES[name]
    for name, texts in CHOICES.items():
        yield f"choice {name}", Constraint(CHOICE, json.dumps(texts)), asked.CHOICES[name]
    for name, source in GRAMMARS.items():
        yield f"lark {name}", Constraint(LARK, source), asked.GRAMMARS[name]
    for name, schema in SCHEMAS.items():
        yield f"schema {name}", Constraint(JSON_SCHEMA, json.dumps(schema)), asked.SCHEMAS[name]


def cases() -> list[Case]:
    """All pairs of a constraint and a prompt that asks for it."""
    return [
        Case(f"{name}/{number}", constraint, prompt)
        for name, constraint, prompts in constraints()
        for number, prompt in enumerate(prompts.written())
    ]


def mismatched() -> list[Case]:
    """As many pairs with prompts of `MISMATCHED`."""
    found = []
    for number, (name, constraint, _) in enumerate(constraints()):
        for turn in range(PER_CONSTRAINT):
            at = (3 * number + turn * 5) % len(MISMATCHED)
            found.append(Case(f"{name}/unasked {at}", constraint, TURN.format(MISMATCHED[at])))
    return found
