"""Reading node.toml again: what the plan says of each kind of change."""

from __future__ import annotations

from pathlib import Path

from sgl_actors.actors.node.config import NodeConfig, load
from sgl_actors.actors.node.reload import held, plan

OTHER = "tests.microkernel.swap_actors:Counter"


def config(folder: Path, text: str) -> NodeConfig:
    """A node.toml with that text."""
    file = folder / "node.toml"
    file.write_text(text)
    return load(file, environ={})


def test_nothing_changes_without_a_change(tmp_path: Path) -> None:
    """The same file twice is an empty plan."""
    found = plan(config(tmp_path, "[scheduler]\nchunk = 256"), config(tmp_path, "[scheduler]\nchunk = 256"))
    assert (found.removed, found.swapped, found.moved, found.added, found.later) == ([], [], [], [], [])
    assert not found.supervisor


def test_a_section_goes_to_its_actor(tmp_path: Path) -> None:
    """Its actor is swapped to the same class with the whole section; keys that are fixed wait for the next start, with what to do instead."""
    old = config(tmp_path, "")
    new = config(
        tmp_path,
        "[scheduler]\nchunk = 256\nstall = 2.0\n[gateway]\nmax_choices = 3\nport = 1\n[model]\nnice = 7\n"
        "[cache]\nmemory = '2GiB'\n[supervisor]\nintensity = 99\n[tenants]\nalice = 'a-long-key'",
    )
    found = plan(old, new)
    assert [(one.actor, one.why) for one in found.swapped] == [
        ("scheduler", "scheduler.chunk, scheduler.stall"),
        ("gateway", "gateway.max_choices, tenants"),
    ]
    assert found.swapped[0].sections["scheduler"]["chunk"] == 256
    assert set(found.swapped[1].sections) == {"gateway", "tenants"}
    assert found.swapped[1].sections["gateway"]["port"] == old.gateway.port
    again = plan(held(old, new), new)
    assert (again.swapped, [line.partition(" ")[0] for line in again.later]) == (
        [],
        ["cache.memory", "gateway.port"],
    )
    assert [line.partition(" ")[0] for line in found.later] == ["model.nice", "cache.memory", "gateway.port"]
    assert "model load" in found.later[0]
    assert found.supervisor


def test_actors_that_change_come_and_go(tmp_path: Path) -> None:
    """Class and options are swapped, a process is a move, disabled ones end, new ones start."""
    old = config(tmp_path, f"[actors.mine]\nclass = '{OTHER}'\n[actors.extra]\nclass = '{OTHER}'")
    new = config(
        tmp_path,
        f"[actors.mine]\nclass = '{OTHER}'\noptions = {{ start = 3 }}\n[actors.cache]\nprocess = 'one'\n"
        f"[actors.programs]\nenabled = false\n[actors.extra]\nclass = 'tests.microkernel.swap_actors:Better'\n"
        f"[actors.fresh]\nclass = '{OTHER}'",
    )
    found = plan(old, new)
    assert found.removed == ["programs"]
    assert [(one.actor, one.why) for one in found.swapped] == [
        ("mine", "actors.mine.options"),
        ("extra", "actors.extra.class"),
    ]
    assert [(one.actor, one.why) for one in found.moved] == [("cache", "actors.cache.process")]
    assert [one.actor for one in found.added] == ["fresh"]
    assert found.swapped[0].spec.child("mine").settings == '{"options":{"start":3}}'
