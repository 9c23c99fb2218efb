"""Tests marked `interpreted` run under Triton's interpreter, which has to be chosen before triton is imported: in a process of their own.

The first of them that is reached runs all that were selected, in one child with `TRITON_INTERPRET=1`; each then reports its own outcome.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = [] if find_spec("triton") else ["test_*"]  # it is installed on Linux x86-64 only

REPORT = "SGL_ACTORS_INTERPRETED_REPORT"
"""Variable with the file into which the child writes outcomes, one JSON line per test."""
CHILD_TIMEOUT = 900.0
"""Seconds: a bound against hanging."""

Outcomes = dict[str, tuple[str, str]]
"""Outcome and text of each test, by node id."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "interpreted: runs under Triton's interpreter, in a process of its own"
    )


def is_child() -> bool:
    """Whether this is the process with the interpreter."""
    return REPORT in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test to be reached waits for all: it gets their time."""
    for item in items:
        if item.get_closest_marker("interpreted") is not None:
            item.add_marker(pytest.mark.timeout(CHILD_TIMEOUT + 10))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """In place of an interpreted test: what came of it in the child."""
    if is_child() or pyfuncitem.get_closest_marker("interpreted") is None:
        return None
    outcome, text = run_child(pyfuncitem.session)[pyfuncitem.nodeid]
    if outcome == "skipped":
        pytest.skip(text)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)
    return True


OUTCOMES = pytest.StashKey[Outcomes]()


def run_child(session: pytest.Session) -> Outcomes:
    """Run the session's interpreted tests once."""
    if OUTCOMES not in session.stash:
        chosen = [item.nodeid for item in session.items if item.get_closest_marker("interpreted") is not None]
        folder = Path(session.config.rootpath)
        report = Path(session.config._tmp_path_factory.mktemp("interpreted")) / "report.jsonl"  # type: ignore[attr-defined]
        listed = report.with_suffix(".txt")
        listed.write_text("\n".join(chosen))
        report.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{listed}"]
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "TRITON_INTERPRET": "1", REPORT: str(report)},
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT,
            check=False,
        )
        silence = f"the child said nothing of it:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        outcomes: Outcomes = dict.fromkeys(chosen, ("failed", silence))
        for line in report.read_text().splitlines():
            nodeid, outcome, text = json.loads(line)
            outcomes[nodeid] = (outcome, text)
        session.stash[OUTCOMES] = outcomes
    return session.stash[OUTCOMES]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the child: note an outcome, of the test itself or of a fixture that failed or skipped."""
    if is_child() and (report.when == "call" or report.outcome != "passed"):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        with Path(os.environ[REPORT]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, text]) + "\n")


@pytest.fixture(scope="session", autouse=True)
def _own_compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is compiled here is neither found nor left in the user's cache."""
    import triton

    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
