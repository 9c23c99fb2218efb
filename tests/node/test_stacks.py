"""The models of a node as a table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sgl_actors.actors.node.messages import LoadedModel, LoadModel
from sgl_actors.actors.node.models import Checkpoint
from sgl_actors.actors.node.options import DEFAULT_ACTORS
from sgl_actors.actors.node.stacks import MOST, STACK, Stacks, specs
from sgl_actors.errors import InvalidRequest, ModelNotFound


def table() -> Stacks:
    """With the node's own model."""
    return Stacks(LoadedModel("first", "", "/first.gguf", "serving"))


def load(stacks: Stacks, name: str, *, first: bool = False) -> LoadedModel:
    """Have a model serve."""
    row = stacks.add(LoadModel("x", name), Checkpoint(Path("/x.gguf")))
    return stacks.serving(row, first=first)


def test_names_and_suffixes_are_unique() -> None:
    """Suffixes are made of what an address may hold, and differ where names look alike."""
    stacks = table()
    assert [load(stacks, name).suffix for name in ("org/B.2", "org-b-2", "…")] == [
        "@org-b-2",
        "@org-b-21",
        "@model",
    ]
    with pytest.raises(InvalidRequest, match="loaded already"):
        load(stacks, "first")
    for name in ("a b", " ", "x" * 129):
        with pytest.raises(InvalidRequest, match="cannot be called"):
            load(stacks, name)
    for number in range(MOST - 4):
        load(stacks, f"m{number}")
    with pytest.raises(InvalidRequest, match=f"takes {MOST}"):
        load(stacks, "one-more")


def test_a_name_comes_from_the_request_the_checkpoint_or_the_file() -> None:
    """In that order."""
    stacks = table()
    assert stacks.add(LoadModel("x"), Checkpoint(Path("/a/b.gguf"))).name == "b"
    assert stacks.add(LoadModel("x"), Checkpoint(Path("/a/c.gguf"), "Served")).name == "Served"
    assert stacks.add(LoadModel("x", "mine"), Checkpoint(Path("/a/d.gguf"), "Other")).name == "mine"


def test_the_default_is_the_first_that_serves() -> None:
    """A replacing model comes first; when the default goes, the next one that serves takes its place."""
    stacks = table()
    load(stacks, "second")
    load(stacks, "third", first=True)
    assert [row.name for row in stacks.rows] == ["third", "first", "second"]
    stacks.remove(stacks.unloading("third"))
    assert [row.name for row in stacks.rows] == ["first", "second"]


def test_the_only_model_stays() -> None:
    """It cannot be unloaded, nor one that is loading or unloading, nor one that is not there."""
    stacks = table()
    loading = stacks.add(LoadModel("x", "second"), Checkpoint(Path("/x.gguf")))
    for name, error in (("first", InvalidRequest), ("second", InvalidRequest), ("third", ModelNotFound)):
        with pytest.raises(error):
            stacks.unloading(name)
    stacks.serving(loading)
    stacks.unloading("first")
    with pytest.raises(InvalidRequest, match="only one"):
        stacks.unloading("second")


def test_the_actors_of_a_model() -> None:
    """They live in processes of their own, know their weights, and share nothing but the classes."""
    row = LoadedModel("b", "@b", "/b.gguf", "loading")
    config = {
        "model": {"path": "/a.gguf", "served_name": "a", "nice": 5},
        "cache": {"memory": 1 << 30, "pages": 9},
    }
    made = specs(
        row, {n: msgspec.structs.replace(s, process=n) for n, s in DEFAULT_ACTORS.items()}, config, 1 << 20
    )
    assert [spec.name for spec in made] == [f"{name}@b" for name in STACK]
    assert made[1].process == "worker/0@b"
    assert msgspec.json.decode(made[1].settings) == {
        "model": {"path": "/b.gguf", "served_name": "b", "nice": 5},
        "cache": {"memory": 1 << 20, "pages": 0},
    }
