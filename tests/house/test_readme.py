"""README says what is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec

from sgl_actors.actors.node.options import DEFAULT_ACTORS, ActorSpec
from sgl_actors.actors.node.validation import SECTIONS
from sgl_actors.cli.app import app

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def between(mark: str) -> str:
    """What stands between two marks of the README."""
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", README, re.DOTALL)
    assert found, mark
    return found[1]


def test_the_table_of_keys_is_complete_and_states_the_defaults() -> None:
    """Every key of every section has its row, with the default that the code has, and no other key has one."""
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", between("keys"), re.MULTILINE))
    expected = {
        f"{section}.{field.encode_name}": msgspec.json.encode(
            field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        ).decode()
        for section, struct in SECTIONS.items()
        for field in msgspec.structs.fields(struct)
    }
    assert rows == expected


def test_the_table_of_an_actor_s_keys_is_complete() -> None:
    """Every key of `[actors.NAME]` is explained, and the actors are named in the order in which they start."""
    keys = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert keys == [field.encode_name for field in msgspec.structs.fields(ActorSpec)]
    places = [README.index(f"`{name}`", README.index("Actors are `cache`")) for name in DEFAULT_ACTORS]
    assert places == sorted(places)


def test_every_verb_is_listed() -> None:
    """The table of verbs has all that the command knows."""
    verbs = set(re.findall(r"^\| `sgl-actors ([a-z-]+)", README, re.MULTILINE))
    known = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    } | {group.name for group in app.registered_groups}
    assert verbs == known


def test_the_program_is_python() -> None:
    """What can be pasted can be parsed."""
    code = re.search(r"```python\n(.*?)```", between("program"), re.DOTALL)
    assert code
    ast.parse(code[1])
