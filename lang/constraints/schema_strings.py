"""Regular expressions of JSON strings: any text, texts of some length, those of a pattern or a format, keys other than given ones.

A character stands for itself, but quotes, backslashes and control characters are escaped: shortly where JSON has a short form, or by number. Nothing
else is escaped. Keys beside given ones may have any character escaped (that is how llguidance writes them).
"""

from __future__ import annotations

import json
import re
from typing import Final, TypeAlias

from sgl_actors.lang.constraints.constraint import JSON_FORM
from sgl_actors.lang.constraints.grammar import Declined
from sgl_actors.lang.constraints.regular import any_of, group, literal
from sgl_actors.lang.constraints.schema_nodes import FORMAT, LITERAL, PATTERN, Text, Unsatisfiable
from sgl_actors.lang.constraints.schema_pattern import Repeated, read_pattern
from sgl_actors.lang.constraints.schema_quoting import CHARACTER, quoted_text

FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"}
)
"""What llguidance knows; `schema_formats` turns some of them into patterns before they come here."""
_LABEL: Final = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_ATOM: Final = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~\-]+"
_BYTE: Final = "(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_IPV4: Final = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_HOST: Final = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_CLOCK: Final = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_SPAN: Final = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_HEX: Final = "[0-9a-fA-F]{1,4}"


def _ipv6() -> str:
    """Eight groups, or fewer with ``::`` in between; before it as many as the groups behind it leave room for."""
    parts = [f"(?:{_HEX}:){{7}}{_HEX}", f"::(?:{_HEX}:){{1,6}}{_HEX}"]
    parts += [f"(?:{_HEX})?::(?:{_HEX}:){{1,5}}{_HEX}"]
    for before, behind in ((1, 4), (2, 3), (3, 2)):
        parts.append(f"(?:(?:{_HEX}:){{0,{before}}}{_HEX})?::(?:{_HEX}:){{1,{behind}}}{_HEX}")
    parts += [f"(?:(?:{_HEX}:){{0,4}}{_HEX})?::{_HEX}:{_HEX}"]
    parts += [f"(?:(?:{_HEX}:){{0,5}}{_HEX})?::{_HEX}", f"(?:(?:{_HEX}:){{0,6}}{_HEX})?::"]
    return group("|".join(parts))


def _uri() -> str:
    """RFC 3986."""
    plain = r"a-zA-Z0-9._~!$&'()*+,;=\-"
    escaped = "%[0-9a-fA-F]{2}"
    segment = f"(?:[{plain}:@]|{escaped})"
    groups = [f"(?:{_HEX}:){{7}}{_HEX}", f"(?:{_HEX}:){{1,7}}:", f"(?:{_HEX}:){{1,6}}:{_HEX}"]
    groups += [f"(?:{_HEX}:){{1,{7 - n}}}(?::{_HEX}){{1,{n}}}" for n in range(2, 6)]
    groups += [f"{_HEX}:(?::{_HEX}){{1,6}}", f":(?::{_HEX}){{1,7}}", "::"]
    groups += [rf"v[0-9a-fA-F]+\.[{plain}:]+"]
    host = rf"(?:\[(?:{'|'.join(groups)})\]|{_IPV4}|(?:[{plain}]|{escaped})*)"
    authority = f"//(?:(?:[{plain}:]|{escaped})*@)?{host}(?::[0-9]*)?(?:/{segment}*)*"
    absolute = f"/(?:{segment}+(?:/{segment}*)*)?"
    tail = f"(?:[{plain}:@/?]|{escaped})*"
    path = f"(?:{authority}|{absolute}|{segment}+(?:/{segment}*)*|)"
    return rf"[a-zA-Z][a-zA-Z0-9+.\-]*:{path}(?:\?{tail})?(?:#{tail})?"


_FORMAT_PATTERNS: Final = {
    "duration": f"P(?:{_SPAN}(?:{_CLOCK})?|{_CLOCK}|[0-9]+W)",
    "email": rf"{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}(?:\.{_LABEL})*|\[{_IPV4}\])",
    "hostname": rf"{_HOST}(?:\.{_HOST})*",
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "uuid": "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "uri": _uri(),
    "unknown": r"[\s\S]*",
}


def string(found: Text) -> str:
    """The expression of a JSON string; raises `Unsatisfiable`, or Declined where rules would have to be intersected."""
    if found.longest is not None and found.longest < found.shortest:
        raise Unsatisfiable(f"minLength {found.shortest} is greater than maxLength {found.longest}")
    if not found.rules:
        return f'"{CHARACTER}{_times(found.shortest, found.longest)}"'
    texts = [source for kind, source in found.rules if kind == LITERAL]
    if len(texts) > 1:
        raise Unsatisfiable("constants differ")
    if len(found.rules) > 1:
        raise Declined(f"{found.rules[0][0]}: together with {found.rules[1][0]}")
    kind, source = found.rules[0]
    if kind == LITERAL:
        return _constant(source, found)
    if kind == FORMAT and source not in _FORMAT_PATTERNS:
        raise Declined(f"format: {source[:32]!r} is unknown")
    read = read_pattern(f"^(?:{_FORMAT_PATTERNS[source]})$" if kind == FORMAT else source)
    return f'"{_of_length(read, found, kind)}"'


def _constant(text: str, found: Text) -> str:
    if not found.shortest <= len(text) <= (len(text) if found.longest is None else found.longest):
        raise Unsatisfiable("a constant is not as long as minLength and maxLength say")
    return f'"{quoted_text(text)}"'


def _of_length(read: Repeated, found: Text, keyword: str) -> str:
    if read.fewest >= found.shortest and (
        found.longest is None or (read.most is not None and read.most <= found.longest)
    ):
        return read.text
    if read.unit is None:
        raise Declined(f"{keyword}: together with minLength or maxLength")
    fewest = max(read.fewest, found.shortest)
    most = min((n for n in (read.most, found.longest) if n is not None), default=None)
    if most is not None and most < fewest:
        raise Unsatisfiable(f"{keyword} matches nothing as long as minLength and maxLength say")
    return read.unit + _times(fewest, most)


def _times(fewest: int, most: int | None) -> str:
    if fewest == 0 and most is None:
        return "*"
    return f"{{{fewest},{'' if most is None else most}}}"


def key_of(pattern: str) -> str:
    """The expression of a key (with its quotes) that `pattern` occurs in."""
    return string(Text(rules=((PATTERN, pattern),)))


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` occurs in a key; declined where that could take long to find out."""
    if sum(map(pattern.count, "*+?{")) > 2:
        raise Declined("patternProperties: beside properties, and not of a simple pattern")
    text = read_pattern(pattern).text
    return (
        re.fullmatch(text, json.dumps(name, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")) is not None
    )


_ESCAPES: Final = str(JSON_FORM.get("json_allowed_escapes", 'nrbtf\\"u'))
_LONG_ESCAPE: Final = r"\\u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
_SHORT_ESCAPE: Final = rf"\\[{''.join(map(literal, _ESCAPES.replace('u', '')))}]"
_PLAIN: Final = r"\"\\\x00-\x1F\x7F".replace('\\"', '"')


_Tree: TypeAlias = dict[str, "_Tree"]
"""Beginnings of names by their next character; "" stands for the end of one."""


def key_beside(names: list[str]) -> str:
    """The expression of a key (with its quotes) that is none of `names` as they are written; any key if there are none."""
    if not names:
        return f'"{CHARACTER}*"'
    tree: _Tree = {}
    for name in names:
        if json.dumps(name, ensure_ascii=False)[1:-1] != name or "\x7f" in name:
            raise Declined("additionalProperties: beside a property whose name is escaped")
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return f'"{_beside(tree)}"'


def _beside(node: _Tree) -> str:
    """What may stand behind a beginning so that none of the names comes about."""
    begun = "".join(character for character in node if character)
    other = _key_character(begun)
    parts = [f"{other}{_key_character('')}*"]
    parts += [f"{literal(character)}{_beside(node[character])}" for character in begun]
    return group("|".join(parts)) + ("" if "" in node else "?")


def _key_character(without: str) -> str:
    parts = [rf"[^{_PLAIN}{''.join(map(literal, without))}]", _SHORT_ESCAPE]
    return any_of([*parts, *([_LONG_ESCAPE] if "u" in _ESCAPES else [])])
