"""Finished rounds, one JSON line each, so that a run that was killed goes on where it was."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.chaos.case import Outcome


class Round(msgspec.Struct):
    """One finished round.

    Attributes:
        case: its name.
        form: "ci" or "long".
        number: which round, from 0.
        size: faults in it, as the form says.
        seed: from which it can be done again.
        commit: of the code; with "+" if files had changed since.
        seconds: that it took.
    """

    case: str
    form: str
    number: int
    size: int
    seed: int
    commit: str
    seconds: float
    outcome: Outcome


class State:
    """The rounds in a file. A line that was torn by the end of a run is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds: list[Round] = list(_read(path))

    def find(self, case: str, form: str, number: int, size: int, seed: int, commit: str) -> Round | None:
        """That round, if it has been done with this code."""
        wanted = (case, form, number, size, seed, commit)
        return next((one for one in reversed(self.rounds) if _key(one) == wanted), None)

    def add(self, round_: Round) -> None:
        """Append it; it is on disk when this returns."""
        self.rounds.append(round_)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("ab") as file:
            file.write(b"\n" * (torn and self.path.stat().st_size > 0) + msgspec.json.encode(round_) + b"\n")

    def latest(self) -> list[Round]:
        """The rounds to report: of each case, form and round the one that was done last."""
        found = {(one.case, one.form, one.number): one for one in self.rounds}
        return list(found.values())


def _key(one: Round) -> tuple[str, str, int, int, int, str]:
    return one.case, one.form, one.number, one.size, one.seed, one.commit


def _read(path: Path) -> Iterable[Round]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=Round)
        except msgspec.DecodeError:
            continue


def commit(repository: Path) -> str:
    """Short name of the commit that is checked out; "+" behind it if files have changed since; "unknown" outside of a repository."""
    try:
        name = _git(repository, "rev-parse", "--short", "HEAD")
        return name + "+" * bool(_git(repository, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(repository: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repository), *arguments], capture_output=True, check=True, text=True
    ).stdout.strip()
