"""Rules of the house that no linter knows: how things are imported, what is never loaded, what no file may say."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("actors", "lang", "kernels", "src", "tests", "benchmarks", "examples", "docs", ".ci")
ROOMS = {"actors", "lang", "kernels"}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
TEXT = {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".html", ".js", ".css", ".json", ".yml", ".sh", ""}
WORKPLACE = re.compile("|".join((r"(?<![\w.])/" + "work/", r"\.\./" + "shared", r"/root" + "/")))
HOSTS = re.compile(
    "|".join(
        ("py" + r"pi\.org", "python" + r"hosted\.org", r"download\." + r"pytorch\.org", r"/simple" + r"\b/")
    )
)
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
KNOWS_THE_WORKPLACE = {".ci/run"}


def files() -> Iterator[Path]:
    """Every file of the project that is written by hand, each once (links are not followed)."""
    yield from (
        path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT and path.name != "LICENSE"
    )
    for folder in FOLDERS:
        for place, names, found in os.walk(ROOT / folder):
            names[:] = [name for name in names if name != "__pycache__" and not name.endswith(".egg-info")]
            yield from (Path(place) / name for name in found if Path(name).suffix in TEXT)


def sources() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every absolute import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def rooms_imported_bare(tree: ast.AST) -> list[tuple[int, str]]:
    """Imports of a room by its bare name: there would be two copies of its modules."""
    return [(line, module) for line, module in imports(tree) if module.split(".")[0] in ROOMS]


def unsafe_loading(tree: ast.AST) -> list[tuple[int, str]]:
    """Whatever runs code that lies in data: pickle and its kin, torch.load, remote code of a checkpoint."""
    found = [(line, module) for line, module in imports(tree) if module.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
            if node.value.id == "torch":
                found.append((node.lineno, "torch.load"))
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module == "torch"
            and any(a.name == "load" for a in node.names)
        ):
            found.append((node.lineno, "torch.load"))
        elif isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle"}:
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if refused else [(node.value.lineno, f"{node.arg}=")]
    return found


Rule = Callable[[ast.AST], list[tuple[int, str]]]


@pytest.fixture(scope="module")
def breaches() -> dict[Rule, set[str]]:
    """Of each rule, where it is broken; every file is parsed once for both."""
    found: dict[Rule, set[str]] = {rooms_imported_bare: set(), unsafe_loading: set()}
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for rule, places in found.items():
            places |= {f"{name(path)}:{line} {what}" for line, what in rule(tree)}
    return found


def test_rooms_are_imported_through_the_package(breaches: dict[Rule, set[str]]) -> None:
    """`sgl_actors.actors`, never `actors`: a top-level package `kernels` breaks transformers."""
    assert breaches[rooms_imported_bare] == set()


def test_nothing_is_unpickled(breaches: dict[Rule, set[str]]) -> None:
    """No pickle, no torch.load, no remote code: a model file or a message can never run code."""
    assert breaches[unsafe_loading] == set()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("import actors", rooms_imported_bare),
        ("def f():\n    from lang.state import State", rooms_imported_bare),
        ("import os, kernels.norm as n", rooms_imported_bare),
        ("import pickle", unsafe_loading),
        ("from pickle import loads", unsafe_loading),
        ("import torch\ntorch.load('x')", unsafe_loading),
        ("from torch import load", unsafe_loading),
        ("f(trust_remote_code=True)", unsafe_loading),
        ("f(allow_pickle=x)", unsafe_loading),
    ],
)
def test_the_rules_catch_what_they_forbid(text: str, rule: Rule) -> None:
    """Each way of breaking a rule is found."""
    assert rule(ast.parse(text))


def test_the_rules_leave_the_rest_alone() -> None:
    """Our own package, relative imports and safe loading are no breach."""
    text = (
        "import sgl_actors.actors\nfrom . import lang\nf(trust_remote_code=False)\njson.load(x)\nimport torch"
    )
    assert not rooms_imported_bare(ast.parse(text))
    assert not unsafe_loading(ast.parse(text))


@pytest.mark.parametrize(
    ("pattern", "allowed"), [(WORKPLACE, KNOWS_THE_WORKPLACE), (HOSTS, set()), (UNFINISHED, set())]
)
def test_no_file_says_what_it_should_not(pattern: re.Pattern[str], allowed: set[str]) -> None:
    """No path of somebody's machine, no host of a package registry, no note of unfinished work."""
    found = {
        f"{name(path)}:{number} {line.strip()[:80]}"
        for path in files()
        if name(path) not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    }
    assert found == set()


def test_the_rooms_are_links_into_the_package() -> None:
    """Wheel, editable install and bare checkout all find the rooms below src/sgl_actors."""
    for room in ROOMS:
        link = ROOT / "src" / "sgl_actors" / room
        assert link.is_symlink()
        assert link.resolve() == ROOT / room
        assert not link.readlink().is_absolute()


def test_every_dependency_is_pinned_for_make() -> None:
    """What pyproject.toml asks for has exactly one tested version in constraints.txt, without a local label."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {re.findall(r"^[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-") for line in wanted}
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert len(pinned) == len(set(pinned))
    assert names - set(pinned) == set()
    assert "torch==2.13.0" in lines


def test_the_continuous_run_uses_the_same_commands_as_people() -> None:
    """`.ci/run` can be executed and only calls make."""
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert "set -euo pipefail" in text
    assert re.findall(r"^make .*$", text, re.MULTILINE) == ["make check", "make test"]
