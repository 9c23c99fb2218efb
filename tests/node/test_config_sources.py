"""The line index of node.toml and the spelling of keys."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.node.sources import environment_spelling, from_file, line_index, split_key

NAMES = st.text("abc_-019", min_size=1, max_size=4)


def test_lines_are_found_for_headers_keys_and_quoted_names() -> None:
    """Headers, plain, dotted and quoted keys have the line they stand on."""
    text = '[a]\nx = 1\n\n[actors."worker/0"]\n  "process" = "p" # c\n[b] # c\ny.z = 2\n'
    index = line_index(text)
    assert index["a",] == 1
    assert index["a", "x"] == 2
    assert index["actors", "worker/0", "process"] == 5
    assert index["b", "y", "z"] == 7


def test_text_in_multi_line_strings_is_no_key() -> None:
    """What looks like a key inside a string does not hide the real one below it."""
    text = '[a]\nt = """\nx = 1\n[b]\n"""\nx = 2\n'
    assert line_index(text)["a", "x"] == 6


def test_a_value_of_an_inline_table_has_the_line_of_its_table() -> None:
    """`cache = {page_size = 4}` is reported where it stands."""
    (setting,) = from_file("\n\ncache = {page_size = 4}\n", "n.toml")
    assert (setting.path, setting.value, setting.origin) == (("cache", "page_size"), 4, "n.toml:3")


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(0, 9), min_size=1), max_size=4), st.data())
def test_the_index_agrees_with_a_parser(tables: dict[str, dict[str, int]], data: Any) -> None:
    """The line that the index gives for a key is the line that, taken away, takes the key away."""
    lines = []
    for table, values in tables.items():
        lines += [
            "#" * data.draw(st.integers(0, 1)),
            f"[{table}]",
            *(f"{k} = {v}" for k, v in values.items()),
        ]
    index = line_index("\n".join(lines))
    for table, values in tables.items():
        for key in values:
            number = index[table, key]
            without = tomllib.loads("\n".join(line for n, line in enumerate(lines, 1) if n != number))
            assert key not in without[table]


def test_keys_split_at_the_section_and_the_field() -> None:
    """An actor's name may hold dots."""
    assert split_key("cache.memory") == ("cache", "memory")
    assert split_key("actors.a.b.process") == ("actors", "a.b", "process")
    assert split_key("cache") == ("cache",)
    assert split_key("actors.cache") == ("actors", "cache")
    assert environment_spelling("worker/0") == "worker_0"
