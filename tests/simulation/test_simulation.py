"""The short form of the simulation, in a process whose sets and dictionaries are always in the same order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sgl_actors.actors.cache.core import RadixCache
from sgl_actors.actors.cache.messages import Entry
from sgl_actors.actors.microkernel import Address
from sgl_actors.actors.microkernel.registry import Registry
from sgl_actors.actors.microkernel.supervisor import Supervisor
from tests.simulation.history import KINDS, run_history, undisturbed

REPOSITORY = Path(__file__).parent.parent.parent


def simulate(*arguments: str) -> tuple[int, str]:
    """Run the command line; a failing seed's line is part of its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.simulation", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("seeds", [80, pytest.param(240, marks=pytest.mark.slow)])
def test_every_invariant_holds_in_each_of_these_histories(seeds: int) -> None:
    """Among these seeds are each kind of fault and each way of recovery; a failing one prints the line that repeats it."""
    code, output = simulate("--seeds", f"0-{seeds - 1}", "--jobs", "2")
    assert code == 0, output[-3000:]
    counts = {name: int(count) for count, name in re.findall(r"^ *(\d+) (.+)$", output, re.MULTILINE)}
    assert counts["seeds"] == seeds
    missing = {f"fault: {kind}" for kind in KINDS} - set(counts)
    assert not missing
    ways = [
        "escalated", "killed in recovery", "asked again by another", "swapped in place", "swapped by restart", "log: attached", "log: swap failed",
        "log: process is stopped, killed", "log: process does not answer, killed", "error: quarantined", "error: overloaded",
    ]  # fmt: skip
    assert not [way for way in ways if not counts.get(way)]


def test_a_seed_repeats_its_history() -> None:
    """In another process and among others, the same seed gives the same messages at the same times; another seed gives others."""

    def digest(seed: int) -> str:
        code, output = simulate("--seed", str(seed))
        assert code == 0, output
        return str(re.findall(r"hash (\w+)", output)[0])

    assert digest(29) == digest(29) != digest(30)


def forget_a_release(self: RadixCache, entry: Entry) -> bool:
    return commit(self, msgspec.structs.replace(entry, release=False))


def never_over(self: Registry, address: Address) -> bool:
    return False


def for_ever(self: Supervisor, *arguments: Any, **options: Any) -> Any:
    self._causes.clear()
    return exited(self, *arguments, **options)


commit, exited = RadixCache.commit, Supervisor.exited


@pytest.mark.parametrize(
    ("owner", "name", "mutation", "found"),
    [
        (RadixCache, "commit", forget_a_release, "leased"),
        (Registry, "is_over", never_over, "which is over"),
        (Supervisor, "exited", for_ever, "no escalation"),
    ],
)
def test_planted_bugs_are_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, mutation: Callable[..., Any], found: str
) -> None:
    """A lease that is not given back, an epoch that is not checked, a supervisor that does not count: a few seeds show each."""
    undisturbed()
    monkeypatch.setattr(owner, name, mutation)
    for seed in range(60):
        if any(found in violation for violation in run_history(seed).violations):
            return
    pytest.fail("60 seeds have not shown it")
