"""docs/components.md: it names what the code has."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from sgl_actors.actors.microkernel import Actor, Message
from sgl_actors.actors.microkernel.plugins import load_class
from sgl_actors.actors.node.options import DEFAULT_ACTORS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "components.md").read_text("utf-8")
CLASSES = [*(spec.class_ for spec in DEFAULT_ACTORS.values()), "sgl_actors.actors.api.actor:ApiActor"]
FOLDERS = sorted(path.split(".")[2] for path in CLASSES)


def section(name: str) -> str:
    """What the page says of one component."""
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section about {name}"
    return found[1]


def test_there_is_a_section_for_each_component() -> None:
    """And none for what is no component."""
    titles = re.findall(r"^## ([a-z]+)$", PAGE, re.MULTILINE)
    assert sorted(titles) == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_message_is_named(folder: str) -> None:
    """All that the actor's messages.py defines, in its section."""
    messages = importlib.import_module(f"sgl_actors.actors.{folder}.messages")
    own = [
        name
        for name, value in vars(messages).items()
        if isinstance(value, type) and issubclass(value, Message) and value.__module__ == messages.__name__
    ]
    assert own
    missing = [name for name in own if not re.search(rf"`{name}`", section(folder))]
    assert not missing


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_layout_and_its_handles_are_those_of_the_code(folder: str) -> None:
    """The layout's name, and the names that the class hands over."""
    handover = importlib.import_module(f"sgl_actors.actors.{folder}.handover")
    assert f"Layout `{handover.LAYOUT}`" in section(folder)
    line = re.search(rf"Layout `{handover.LAYOUT}`([^.\n]*)", section(folder))
    assert line is not None
    for handle in re.findall(r"`(\w+)`", line[1]):
        assert re.search(rf"``{handle}``", handover.__doc__ or ""), (
            f"{folder}/handover.py says nothing of {handle!r}"
        )


@pytest.mark.parametrize("path", CLASSES)
def test_every_component_can_be_swapped_in_place(path: str) -> None:
    """Both halves of the protocol are there."""
    actor = load_class(path)
    assert actor.snapshot is not Actor.snapshot
    assert actor.restore is not Actor.restore


def test_verbs_and_links_of_the_page_exist() -> None:
    """Files that it links to are there, and so are the verbs that it shows."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    from typer.main import get_command

    from sgl_actors.cli.app import app

    verbs = set(re.findall(r"\$ sgl-actors (\w+)", PAGE))
    assert verbs <= set(get_command(app).commands)  # type: ignore[attr-defined]
